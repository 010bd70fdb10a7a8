"""examples/deepspeed: the paper's settings without tensor parallelism, scripts that check themselves, and files that DeepSpeed accepts."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex

import pytest

from mindspeed_vita.config import load_recipe, recipe_to_dict, validate
from mindspeed_vita.integration.hf_trainer import refusals
from mindspeed_vita.integration.hf_trainer.deepspeed_file import deepspeed_settings, offloads, zero_stage

from .test_recipes import EXAMPLES, MEDIA, MODULES, TABLE_2, no_paths_of_the_machine, some_paths, start, world  # noqa: F401

FOLDER = EXAMPLES / "deepspeed"
CONTEXT_PARALLEL = {"7b": {1: 1, 2: 2, 3: 4, 4: 16}, "14b": {1: 1, 2: 4, 3: 8, 4: 32}}
RECIPES = [(size, stage) for size in CONTEXT_PARALLEL for stage in TABLE_2]
FILES = {"zero2": (2, False), "zero3": (3, False), "zero3_offload": (3, True)}


@pytest.fixture
def needs_deepspeed():
    for package in ("accelerate", "deepspeed"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed; scripts/test.sh installs it")


@pytest.mark.parametrize("size, number", RECIPES)
def test_a_recipe_has_the_papers_settings_and_the_engine_takes_it(size, number, some_paths):  # noqa: F811
    recipe = load_recipe(FOLDER / f"{size}_stage{number}.yaml")
    found = {**recipe_to_dict(recipe)["data"], **recipe_to_dict(recipe)["train"]}
    assert {key: found[key] for key in TABLE_2[number]} == TABLE_2[number]
    assert recipe.train.modules == MODULES[number] and (recipe.model.preset, recipe.train.precision) == (size, "bf16")
    assert (recipe.data.max_images, recipe.data.max_frames) == (MEDIA[number], MEDIA[number])
    assert (recipe.train.vision_lr_mult, recipe.train.vision_layer_decay) == ((0.1, 0.9) if number == 2 else (1.0, 1.0))
    assert recipe.parallel.cp == CONTEXT_PARALLEL[size][number] and recipe.train.recompute == "full"
    refusals.check(recipe)
    smallest = max(8, recipe.parallel.cp)  # 528 packs a step have no more than 16 data-parallel ranks
    for replicas in (1, 2) if number < 3 else (1, 2, 8):
        validate(recipe, replicas * smallest)


def test_recipes_scripts_and_files_are_all_there_and_short():
    names = {f"{size}_stage{number}{end}" for size, number in RECIPES for end in (".yaml", ".sh")} | {f"{name}.json" for name in FILES}
    assert {path.name for path in FOLDER.iterdir()} == names
    for path in FOLDER.iterdir():
        assert len(path.read_text().splitlines()) <= 25, path
        assert not re.findall(r"(?<![\w./}$-])/[a-z]\w+/", path.read_text().removeprefix("#!/usr/bin/env bash")), path


@pytest.mark.parametrize("name", FILES)
def test_a_file_leaves_to_the_recipe_what_the_recipe_says(name):
    settings = deepspeed_settings(str(FOLDER / f"{name}.json"))
    assert (zero_stage(settings), offloads(settings, "optimizer")) == FILES[name]
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"):
        assert settings[key] == "auto"


@pytest.mark.parametrize("size, number", RECIPES)
def test_a_dry_run_prints_the_command_and_passes(needs_deepspeed, world, size, number):  # noqa: F811
    cp = CONTEXT_PARALLEL[size][number]
    nodes = max(1, cp // 8)
    several = {"NODE_RANK": "0", "MASTER_ADDR": "node0"} if nodes > 1 else {}
    weights = {"BASE_WEIGHTS" if number == 1 else "INIT_FROM": f"{world['WEIGHTS']}/weights_{size}"}
    settings = {**world, **several, **weights, "DRY_RUN": "1", "NNODES": str(nodes), "NPROC_PER_NODE": "8"}
    done = start(FOLDER / f"{size}_stage{number}.sh", "train.steps=7", **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    command, *report = done.stdout.splitlines()
    words = shlex.split(command)
    zero = FOLDER / ("zero2.json" if number == 1 else "zero3.json")
    *options, recipe, steps = words[words.index("mindspeed_vita.cli.main") + 1 :]
    assert options == ["train", "--engine", "hf", "--deepspeed", str(zero)] and steps == "train.steps=7"
    assert recipe == str(FOLDER / f"{size}_stage{number}.yaml")
    assert f"{8 * nodes} processes: tp 1 pp 1 cp {cp} dp {8 * nodes // cp}" in done.stdout
    assert f"ZeRO-{2 if number == 1 else 3} of {zero}" in done.stdout
    assert report[-1] == "PASS: the run would start"


def test_a_dry_run_names_what_is_wrong(world, tmp_path):  # noqa: F811
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": 3}, "scheduler": {}}))
    variables = {**world, "BASE_WEIGHTS": f"{world['WEIGHTS']}/weights_14b", "DRY_RUN": "1", "NPROC_PER_NODE": "8"}
    done = start(FOLDER / "7b_stage1.sh", "parallel.tp=2", DEEPSPEED=str(tmp_path / "zero.json"), **variables)
    assert done.returncode == 2
    for problem in ("parallel.tp=2: Trainer's model is whole", "has the section scheduler", "hidden_size: 5120 there, 3584 here"):
        assert problem in done.stdout, done.stdout
    assert done.stdout.splitlines()[-1] == "FAIL: 3 of 7 topics have a problem"


def test_the_plain_scripts_take_the_engine_and_its_options_too(world):  # noqa: F811
    variables = {**world, "BASE_WEIGHTS": f"{world['WEIGHTS']}/weights_7b", "DRY_RUN": "1", "NPROC_PER_NODE": "8"}
    script = EXAMPLES / "long_vita_7b" / "stage1.sh"
    hf = start(script, "parallel.tp=1", ENGINE="hf", **variables)
    assert "main train --engine hf /" in hf.stdout and "no sharing of memory" in hf.stdout
    assert "main train --engine hf --fsdp /" in start(script, "parallel.tp=1", ENGINE="hf", FSDP="1", **variables).stdout
    other = start(script, DEEPSPEED="zero3", **variables)
    assert other.returncode == 2 and "--deepspeed zero3: only --engine hf takes it" in other.stderr
