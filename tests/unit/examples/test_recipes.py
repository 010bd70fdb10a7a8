"""Full-size recipes: the paper's settings, layouts that divide, scripts that check themselves before they train, and one that trains."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from mindspeed_vita.cli.main import main
from mindspeed_vita.config import Recipe, load_recipe, recipe_from_dict, recipe_to_dict, validate
from mindspeed_vita.data.tiny_tokenizer import train_tokenizer
from tests.fake_ascend import make_program

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
SIZES = ("7b", "14b", "72b")
STAGES = ("stage1", "stage2", "stage3", "stage3_isolated", "stage4", "stage4_isolated")
RECIPES = [(size, stage) for size in SIZES for stage in STAGES]

LAYOUTS = {"7b": (4, 1), "14b": (8, 1), "72b": (8, 8)}
CONTEXT_PARALLEL = {1: 1, 2: 1, 3: 2, 4: 8}
TABLE_2 = {
    1: {"seq_length": 32768, "resets": True, "packing": "same_source", "global_batch": 528, "steps": 1000, "lr": 1e-3, "min_lr": 1e-5},
    2: {"seq_length": 16384, "resets": True, "packing": "same_source", "global_batch": 528, "steps": 5000, "lr": 1e-5, "min_lr": 1e-7},
    3: {"seq_length": 131072, "resets": False, "packing": "cross_source", "global_batch": 64, "steps": 1000, "lr": 5e-6, "min_lr": 1e-7},
    4: {"seq_length": 1048576, "resets": False, "packing": "cross_source", "global_batch": 8, "steps": 500, "lr": 5e-6, "min_lr": 1e-7},
}
MODULES = {1: ("projector",), 2: ("vision", "projector", "language"), 3: ("projector", "language"), 4: ("projector", "language")}
MEDIA = {1: 128, 2: 64, 3: 512, 4: 4096}
PATHS = ("DATA_ROOT", "TOKENIZER", "BASE_WEIGHTS", "INIT_FROM", "OUTPUT_ROOT", "MIXTURE")


def script_of(size: str, stage: str) -> Path:
    return EXAMPLES / f"long_vita_{size}" / f"{stage}.sh"


def recipe_of(size: str, stage: str) -> Recipe:
    return load_recipe(script_of(size, stage).with_suffix(".yaml"))


def devices(recipe: Recipe) -> int:
    return recipe.parallel.tp * recipe.parallel.pp * recipe.parallel.cp


@pytest.fixture(autouse=True)
def no_paths_of_the_machine(monkeypatch):
    for name in (*PATHS, "VITA_OUT", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "NPROC_PER_NODE", "ENGINE", "DRY_RUN", "PYTHON"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def some_paths(monkeypatch):
    for name in PATHS[:-1]:
        monkeypatch.setenv(name, f"/nowhere/{name}")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, str]:
    """Environment with everything a full-size run looks for: empty data files, a small tokenizer, the head of a checkpoint per size."""
    folder = tmp_path_factory.mktemp("world")
    for stage in TABLE_2:
        for entry in yaml.safe_load((EXAMPLES / f"mixtures/stage{stage}.yaml").read_text())["dataset"].values():
            for path in entry["data_paths"]:
                file = Path(path.replace("${DATA_ROOT}", str(folder / "data")))
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
    train_tokenizer(["Words to learn from."], 300, folder / "tokenizer")
    for size in SIZES:
        step = folder / f"weights_{size}" / "step_0000000"
        step.mkdir(parents=True)
        (step / "checksums.json").write_text("{}")
        (step / "recipe.json").write_text(json.dumps(recipe_to_dict(recipe_from_dict({"model": {"preset": size}}))))
    paths = {"DATA_ROOT": folder / "data", "TOKENIZER": folder / "tokenizer", "OUTPUT_ROOT": folder / "out", "WEIGHTS": folder}
    return {name: str(path) for name, path in paths.items()}


def start(script: Path, *arguments: str, timeout: int = 120, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "DEVICE": "cpu", **variables}
    return subprocess.run(["bash", str(script), *arguments], env=environment, capture_output=True, text=True, timeout=timeout)


def dry_run(world: dict[str, str], size: str, stage: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    weights = f"{world['WEIGHTS']}/weights_{size}"
    settings = {**world, "DRY_RUN": "1", "BASE_WEIGHTS" if stage == "stage1" else "INIT_FROM": weights, **variables}
    return start(script_of(size, stage), *arguments, **settings)


@pytest.mark.parametrize("size, stage", RECIPES)
def test_a_recipe_has_the_papers_settings_and_divides(size, stage, some_paths):
    recipe = recipe_of(size, stage)
    number = int(stage[5])
    expected = dict(TABLE_2[number])
    if stage.endswith("_isolated"):
        expected["resets"] = True
    found = {**recipe_to_dict(recipe)["data"], **recipe_to_dict(recipe)["train"]}
    assert {key: found[key] for key in expected} == expected
    assert recipe.train.modules == MODULES[number] and recipe.model.preset == size
    assert (recipe.data.max_images, recipe.data.max_frames) == (MEDIA[number], MEDIA[number])
    tower = (0.1, 0.9) if number == 2 else (1.0, 1.0)
    assert (recipe.train.vision_lr_mult, recipe.train.vision_layer_decay) == tower
    common = {"weight_decay": 0.0, "clip_grad": 1.0, "beta1": 0.9, "beta2": 0.999, "warmup_fraction": 0.03, "precision": "bf16"}
    assert {key: found[key] for key in common} == common
    assert (recipe.parallel.tp, recipe.parallel.pp, recipe.parallel.cp) == (*LAYOUTS[size], CONTEXT_PARALLEL[number])
    # data-parallel replicas; eight of them take the paper's smallest batch, 8 packs
    for replicas in (1, 2, 8):
        validate(recipe, replicas * devices(recipe))
    with pytest.raises(ValueError, match="does not divide"):
        validate(recipe, devices(recipe) // 2)


@pytest.mark.parametrize("size", SIZES)
def test_every_recipe_has_its_script_and_nothing_else_lies_there(size):
    folder = EXAMPLES / f"long_vita_{size}"
    assert {path.name for path in folder.iterdir()} == {"pipeline.yaml"} | {f"{stage}{end}" for stage in STAGES for end in (".yaml", ".sh")}
    for path in folder.iterdir():
        assert len(path.read_text().splitlines()) <= 40, path
        # a path of a machine would be an absolute one
        assert not re.findall(r"(?<![\w./}$-])/[a-z]\w+/", path.read_text().removeprefix("#!/usr/bin/env bash")), path


@pytest.mark.parametrize("size, stage", RECIPES)
def test_a_dry_run_prints_the_command_and_passes(world, size, stage):
    recipe_file = script_of(size, stage).with_suffix(".yaml")
    text = recipe_file.read_text()
    tp, pp, cp = (int(re.search(rf"^  {name}: (\d+)$", text, re.MULTILINE)[1]) for name in ("tp", "pp", "cp"))
    per_node = min(8, tp * pp * cp)
    nodes = tp * pp * cp // per_node
    several = {"NODE_RANK": "0", "MASTER_ADDR": "node0"} if nodes > 1 else {}
    done = dry_run(world, size, stage, NNODES=str(nodes), NPROC_PER_NODE=str(per_node), **several)
    assert done.returncode == 0, done.stdout + done.stderr
    command, *report = done.stdout.splitlines()
    assert f"--nnodes {nodes} --nproc_per_node {per_node}" in command
    words = shlex.split(command)  # the folder's name may hold spaces
    assert words[words.index("mindspeed_vita.cli.main") :] == ["mindspeed_vita.cli.main", "train", str(recipe_file)]
    assert f"{tp * pp * cp} processes: tp {tp} pp {pp} cp {cp} dp 1" in done.stdout
    assert ("samples isolated" in done.stdout) == (stage[5] in "12" or stage.endswith("_isolated"))
    assert "files, all there" in done.stdout and f"start from {world['WEIGHTS']}/weights_{size}/step_0000000" in done.stdout
    assert report[-1] == "PASS: the run would start"


@pytest.mark.parametrize("script", sorted((EXAMPLES / "less_recompute").glob("*.sh")), ids=lambda path: path.stem)
def test_a_script_that_computes_less_twice_is_the_stages_own_with_another_mode(script, some_paths):
    """The modes of the table in docs/planner.md."""
    size, stage = script.stem.split("_")
    settings = {"DRY_RUN": "1", "PYTHON": "true", "DEVICE": "cpu", **dict.fromkeys(PATHS[:-1], "/nowhere")}
    several = {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "node0", "NPROC_PER_NODE": "8"}
    done = start(script, "train.steps=7", **settings, **several)
    words = shlex.split(done.stdout)
    own, *overrides = words[words.index("train") + 1 :]
    assert Path(own).resolve() == EXAMPLES / f"long_vita_{size}" / f"{stage}.yaml" and overrides[-1] == "train.steps=7"
    recipe, plain = load_recipe(own, overrides[:-1]), load_recipe(own)
    assert plain.train.recompute == "full" != recipe.train.recompute
    (row,) = [line for line in (EXAMPLES.parent / "docs" / "planner.md").read_text().splitlines() if f"[{script.name}]" in line]
    assert f"`{' '.join(overrides[:-1])}`" in row
    validate(recipe, devices(recipe) * 2)


@pytest.fixture
def ascend_path(tmp_path) -> str:
    """PATH of a node that has NPUs."""
    make_program(tmp_path / "bin" / "npu-smi", "exit 0")
    return f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"


def test_a_dry_run_on_an_ascend_node_takes_mindspeed_llm_and_its_flags(world, ascend_path):
    flags = ("train.steps=7", "--", "--use-flash-attn")
    done = dry_run(world, "14b", "stage2", *flags, PATH=ascend_path, DEVICE="auto", NPROC_PER_NODE="8")
    assert done.returncode == 0, done.stdout + done.stderr
    command = done.stdout.splitlines()[0]
    assert "DEVICE=npu" in command and "HCCL_CONNECT_TIMEOUT=7200" in command
    words = shlex.split(command)
    recipe_file = str(EXAMPLES / "long_vita_14b" / "stage2.yaml")
    assert words[words.index("train") :] == ["train", "--engine", "mindspeed-llm", recipe_file, "train.steps=7", "--", "--use-flash-attn"]
    assert "7 steps of 528 packs" in done.stdout
    builtin = dry_run(world, "14b", "stage2", *flags, PATH=ascend_path, DEVICE="npu", NPROC_PER_NODE="8", ENGINE="builtin")
    assert builtin.returncode == 2 and "only --engine mindspeed-llm takes flags after --" in builtin.stderr


def test_the_number_of_processes_is_that_of_the_visible_devices(world, ascend_path):
    done = dry_run(world, "14b", "stage2", PATH=ascend_path, DEVICE="auto", ASCEND_RT_VISIBLE_DEVICES="0,1,2,3,4,5,6,7")
    assert done.returncode == 0 and "--nnodes 1 --nproc_per_node 8 --standalone" in done.stdout
    done = dry_run(world, "14b", "stage2", DEVICE="cuda", CUDA_VISIBLE_DEVICES="4,5")
    assert done.returncode == 2 and "does not divide the number of processes, 2;" in done.stdout


def saved_by_mindspeed_llm(folder: Path, step: int) -> None:
    """What --save leaves behind of a run with tp 8, as far as a dry run looks at it."""
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))
    for rank in range(8):
        place = folder / f"iter_{step:07d}" / f"mp_rank_{rank:02d}"
        place.mkdir(parents=True)
        torch.save({"model": {}, "optimizer": {}, "opt_param_scheduler": {}, "rng_state": []}, place / "model_optim_rng.pt")


def test_what_mindspeed_llm_saved_is_handed_over_by_its_own_loader_and_resumed_from(world, ascend_path, tmp_path):
    before, own = tmp_path / "stage1", tmp_path / "stage2"
    before.mkdir()
    saved_by_mindspeed_llm(before, 1000)
    variables = {"PATH": ascend_path, "DEVICE": "auto", "NPROC_PER_NODE": "8", "OUTPUT_ROOT": str(tmp_path), "INIT_FROM": ""}
    first = dry_run(world, "14b", "stage2", "train.steps=7", **variables)
    assert first.returncode == 0, first.stdout + first.stderr
    assert f"start from {before}, which MindSpeed-LLM saved" in first.stdout
    own.mkdir()
    saved_by_mindspeed_llm(own, 500)
    assert f"continues from {own}" in dry_run(world, "14b", "stage2", **variables).stdout
    elsewhere = dry_run(world, "14b", "stage2", f"checkpoint.directory={tmp_path / 'elsewhere'}", **variables)
    assert f"start from {before}, which MindSpeed-LLM saved" in elsewhere.stdout
    again = dry_run(world, "14b", "stage3", f"checkpoint.directory={own}", **variables)
    assert f"continues from {own}" in again.stdout, "wherever the recipe says, not where the stage's name says"
    builtin = dry_run(world, "14b", "stage2", ENGINE="builtin", **variables)
    assert builtin.returncode == 2 and f"vita convert --from {before} --to native" in builtin.stdout


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"NPROC_PER_NODE": "12"}, r"tp\*pp\*cp=8\*1\*1=8 does not divide the number of processes, 12;"),
        ({"NPROC_PER_NODE": "8", "DATA_ROOT": "/nowhere"}, "found no file for LLaVA-ReCap: /nowhere/datasets/jsonl/"),
        ({"NPROC_PER_NODE": "8", "TOKENIZER": "/nowhere"}, "tokenizer folder '/nowhere' does not exist"),
        ({"NPROC_PER_NODE": "8", "INIT_FROM": "/nowhere"}, "checkpoint.init_from=/nowhere: no such folder; .* Train the stage before"),
        ({"NPROC_PER_NODE": "8", "INIT_FROM": "", "OUTPUT_ROOT": "/nowhere"}, "PROBLEM: checkpoint.init_from=/nowhere/stage1: no such"),
    ],
    ids=["layout", "data", "tokenizer", "weights", "default weights"],
)
def test_a_dry_run_names_what_is_wrong(world, variables, message):
    done = dry_run(world, "14b", "stage2", **variables)
    assert done.returncode == 2 and re.search(message, done.stdout), done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "FAIL: 1 of 6 topics has a problem"


def test_weights_of_another_size_are_refused(world, monkeypatch, capsys):
    monkeypatch.setenv("BASE_WEIGHTS", f"{world['WEIGHTS']}/weights_7b")
    for name in ("DATA_ROOT", "TOKENIZER", "OUTPUT_ROOT"):
        monkeypatch.setenv(name, world[name])
    assert main(["check", "--processes", "8", str(script_of("14b", "stage1").with_suffix(".yaml"))]) == 2
    assert "model.language.hidden_size: 3584 there, 5120 here" in capsys.readouterr().out


@pytest.mark.parametrize(
    "variables, message",
    [
        ({}, r"environment variables first:\n  DATA_ROOT: .*\n  TOKENIZER: .*\n  BASE_WEIGHTS: .*vita convert.*\n  OUTPUT_ROOT: "),
        ({"all": "", "NNODES": "2"}, r"first:\n  NODE_RANK: .*\n  MASTER_ADDR: "),
        ({"all": "", "NNODES": "two"}, "NNODES=two; expected a whole number"),
        ({"all": "", "NPROC_PER_NODE": "0"}, "NPROC_PER_NODE=0; expected a whole number"),
        ({"all": "", "DEVICE": "npu"}, "found no device of kind npu on this machine; .* say in NPROC_PER_NODE how many"),
        ({"all": "", "DEVICE": "tpu"}, "DEVICE=tpu; expected auto, npu, cuda or cpu"),
        ({"all": "", "ENGINE": "deepspeed"}, "ENGINE=deepspeed; expected builtin, mindspeed-llm or hf"),
        ({"all": "", "ENGINE": "mindspeed-llm"}, "ENGINE=mindspeed-llm runs on NPUs, the device here is cpu"),
    ],
    ids=["paths", "nodes", "nnodes", "processes", "no npu", "device", "engine", "engine on a CPU"],
)
def test_a_script_says_what_it_needs_before_it_starts_anything(world, variables, message):
    known = {**world, "BASE_WEIGHTS": world["WEIGHTS"]} if "all" in variables else {}
    done = start(script_of("14b", "stage1"), **known, **{name: value for name, value in variables.items() if name != "all"})
    assert done.returncode == 2 and re.search(message, done.stderr), done.stderr
    assert not done.stdout


@pytest.mark.slow
@pytest.mark.distributed
def test_a_script_trains_on_a_cpu_and_the_next_stage_starts_from_it(tiny, tmp_path):
    """The full-size scripts with tiny overrides: two processes, two stages, the second from the output of the first."""
    sections = recipe_to_dict(tiny.recipe(tmp_path))
    shape = {f"model.{part}": sections["model"][part] for part in ("vision", "projector", "language")}
    small = [f"{key}={json.dumps(value)}" for key, value in shape.items()]
    small += ["model.preset=tiny", "data.seq_length=128", "data.max_tiles=2", "data.num_workers=0", "data.media_root="]
    small += ["parallel.tp=1", "train.precision=fp32", "train.global_batch=2", "train.steps=2", "logging.tensorboard=false"]
    paths = {"DATA_ROOT": tiny.folder, "TOKENIZER": tiny.folder / "tokenizer", "MIXTURE": tiny.folder / "mixture.yaml"}
    variables = {name: str(path) for name, path in paths.items()}
    variables |= {"NPROC_PER_NODE": "2", "BASE_WEIGHTS": "-", "OUTPUT_ROOT": str(tmp_path)}
    first = start(script_of("14b", "stage1"), *small, "checkpoint.init_from=", timeout=240, **variables)
    assert first.returncode == 0, first.stdout + first.stderr
    second = start(script_of("14b", "stage2"), *small, timeout=240, **variables)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "long_vita_14b-stage2: 2 steps" in second.stdout and (tmp_path / "stage2" / "step_0000002").is_dir()
    assert "dp2" in first.stdout
