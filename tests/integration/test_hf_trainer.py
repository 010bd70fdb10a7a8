"""The engine on transformers' Trainer: the built-in engine's curve with ZeRO, FSDP2 and sequence parallelism, text-only packs, resume."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mindspeed_vita.checkpoint import lineage
from mindspeed_vita.cli.main import main
from mindspeed_vita.config import Recipe, recipe_to_dict
from mindspeed_vita.data.dataset import build_data
from mindspeed_vita.integration.hf_trainer import checkpoints
from mindspeed_vita.integration.hf_trainer.start_weights import named_start
from tests.metrics_table import check_keys, check_openmetrics, check_shown, check_tensorboard, lines_of, module_norms
from tests.tiny_data import TinyData, read_metrics

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
TRAIN = {"vision_lr_mult": 0.5, "vision_layer_decay": 0.9, "weight_decay": 0.1}


@pytest.fixture(autouse=True, scope="module")
def needs_deepspeed() -> None:
    for package in ("accelerate", "deepspeed"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed; scripts/test.sh installs it")


def command(recipe: Recipe, *options: str, processes: int = 2) -> list[str]:
    """`vita train` under torchrun."""
    directory = Path(recipe.checkpoint.directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe_to_dict(recipe)))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [*launcher, "-m", "mindspeed_vita.cli.main", "train", str(path), *options]


def trained(recipe: Recipe, *options: str, said: str = "starting from", processes: int = 2) -> list[float]:
    words = command(recipe, "--engine", "hf", *options, processes=processes)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert said in done.stderr
    return read_metrics(Path(recipe.checkpoint.directory))


@pytest.fixture(scope="module")
def start(tiny: TinyData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Initial weights of the built-in engine, and its curve from them."""
    from mindspeed_vita.checkpoint.native import checkpoint as native
    from mindspeed_vita.engine.loop import train
    from mindspeed_vita.engine.session import distributed
    from mindspeed_vita.parallel.build import build_model
    from mindspeed_vita.platform import get_platform

    folder = tmp_path_factory.mktemp("hf_trainer")
    recipe = tiny.recipe(folder / "init")
    with distributed(recipe, get_platform()) as layout:
        native.save_weights(folder / "init", build_model(recipe, layout), recipe)
    train(tiny.recipe(folder / "builtin", checkpoint={"init_from": str(folder / "init")}, train=TRAIN))
    losses, norms = (read_metrics(folder / "builtin", key) for key in ("loss", "grad_norm"))
    return {"init": str(folder / "init"), "losses": losses, "norms": norms, "modules": module_norms(folder / "builtin")}


def assert_same_module_norms(run: Path, start: dict[str, Any]) -> None:
    """Those of the built-in engine; the curves part by rounding alone."""
    own = module_norms(run)
    assert own[0] == pytest.approx(start["modules"][0], rel=1e-5)
    assert own == [pytest.approx(norms, rel=1e-3) for norms in start["modules"][: len(own)]]


SHARING = {"zero2": ("--deepspeed", "zero2"), "zero3": ("--deepspeed", "zero3"), "fsdp": ("--fsdp",)}


@pytest.mark.parametrize("way", SHARING)
def test_shared_memory_gives_the_built_in_curve_and_resumes(
    way: str, tiny: TinyData, tmp_path: Path, start: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, options = tmp_path / way, SHARING[way]
    recipe = tiny.recipe(folder, checkpoint={"init_from": start["init"], "save_every": 10}, train=TRAIN)
    losses = trained(recipe, *options)
    torch.testing.assert_close(losses, start["losses"], atol=1e-4, rtol=0)
    torch.testing.assert_close(read_metrics(folder, "grad_norm"), start["norms"], atol=1e-3, rtol=1e-3)
    assert_same_module_norms(folder, start)
    check_shown(folder, tmp_path / "page.html", capsys, steps=20, saved="10, 20")
    record = lineage.of_checkpoint(folder / "export")
    assert (record.made_by, record.step, len(record.parents)) == ("training", 20, 1)
    assert record.parents[0] == lineage.of_checkpoint(Path(start["init"])), "the export says which weights the run began with"
    check = ["check", "--engine", "hf", *options, "--processes", "2", str(folder.with_suffix(".yaml"))]
    assert main(check) == 0 and f"continues from {folder / 'checkpoint-20'}" in capsys.readouterr().out
    assert main([*check, f"checkpoint.init_from={folder / 'export'}", f"checkpoint.directory={tmp_path / 'next'}"]) == 0
    assert f"start from {folder / 'export'}; checkpoints go to" in capsys.readouterr().out

    shutil.rmtree(folder / "checkpoint-20")
    alone = tmp_path / "alone"
    shutil.copytree(folder, alone)
    if way == "zero2":
        assert trained(recipe, *options, said=f"continuing from {folder / 'checkpoint-10'}") == losses, "bit for bit"
    else:
        assert kill_one_rank(recipe, *options, at=14) != 0 and not (folder / "checkpoint-20").exists()
        assert trained(recipe, *options, said=f"continuing from {folder / 'checkpoint-10'}") == losses, "bit for bit"
    if way == "zero3":  # the way is looked at before anything is converted
        with pytest.raises(ValueError, match="was written with zero3, this run has zero2"):
            checkpoints.read_state(folder / "checkpoint-10", recipe, fingerprint="", sharing="zero2")
        assert not checkpoints.needs_universal(folder / "checkpoint-10", sharing="zero2", ranks=1)
    again = replace(recipe, checkpoint=replace(recipe.checkpoint, directory=str(alone)))
    found = trained(again, *options, said=f"continuing from {alone / 'checkpoint-10'}", processes=1)
    torch.testing.assert_close(found, losses, atol=1e-5, rtol=0)


def kill_one_rank(recipe: Recipe, *options: str, at: int) -> int:
    """Continues a run, kills rank 1 without a warning when a step is logged, and returns the status of torchrun."""
    log = Path(recipe.checkpoint.directory) / "metrics.jsonl"
    steps = len(log.read_text().splitlines())
    process = subprocess.Popen(command(recipe, "--engine", "hf", *options), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not at <= len(log.read_text().splitlines()) < steps:  # the log is cut to the checkpoint when the run begins
            assert process.poll() is None, "the run ended before a rank was killed"
            time.sleep(0.01)
        ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (second,) = [rank for rank in ranks if b"\0RANK=1\0" in Path(f"/proc/{rank}/environ").read_bytes()]
        os.kill(int(second), signal.SIGKILL)
        return process.wait(timeout=120)
    finally:
        process.kill()


@pytest.mark.parametrize("own", [False, True], ids=["torch", "deepspeed"])
def test_an_optimizer_in_host_memory_gives_the_built_in_curve(own: bool, tiny: TinyData, tmp_path: Path, start: dict[str, Any]) -> None:
    if own and not os.environ.get("VITA_DEEPSPEED_ADAM"):
        pytest.skip("VITA_DEEPSPEED_ADAM is not set: DeepSpeed's Adam takes about 100 processor seconds to compile")
    # the recipe decides what a file leaves out: clipping, packs of a step, precision
    content = {"zero_optimization": json.loads((ROOT / "examples/deepspeed/zero3_offload.json").read_text())["zero_optimization"]}
    (tmp_path / "ds.json").write_text(json.dumps({**content, "zero_force_ds_cpu_optimizer": own}))
    recipe = tiny.recipe(tmp_path / "offload", checkpoint={"init_from": start["init"]}, train=TRAIN)
    whose = "DeepSpeed's AdamW" if own else "torch's AdamW"
    losses = trained(recipe, "--deepspeed", str(tmp_path / "ds.json"), said=f"(zero3 and {whose})")
    torch.testing.assert_close(losses, start["losses"], atol=1e-4, rtol=0)
    assert_same_module_norms(tmp_path / "offload", start)


def test_sequence_parallel_gives_the_built_in_curve(tiny: TinyData, tmp_path: Path, start: dict[str, Any]) -> None:
    recipe = tiny.recipe(tmp_path / "sp", checkpoint={"init_from": start["init"]}, train=TRAIN, parallel={"cp": 2})
    torch.testing.assert_close(trained(recipe), start["losses"], atol=1e-5, rtol=0)
    assert_same_module_norms(tmp_path / "sp", start)


@pytest.mark.parametrize("options", [("--deepspeed", str(ROOT / "examples/deepspeed/zero3.json")), ("--fsdp",)], ids=["zero3", "fsdp"])
def test_packs_without_pictures_do_not_hang_and_have_the_built_in_losses(
    options: tuple[str, ...], tiny: TinyData, tmp_path: Path, start: dict[str, Any]
) -> None:
    # a frozen tower is gathered when it is called, too
    frozen = {"modules": ["projector", "language"], "projector_lr_mult": 2.0}
    sections: dict[str, Any] = {
        "data": {"mixture": tiny.two_sources},
        "train": {**TRAIN, **frozen, "steps": 8, "global_batch": 2},
        "logging": {"tensorboard": True, "openmetrics": True},
    }
    recipes = [tiny.recipe(tmp_path / name, checkpoint={"init_from": start["init"]}, **sections) for name in ("builtin", "hf")]
    model = recipes[0].model
    dataset = build_data(
        recipes[0].data, tokens_per_tile=model.tokens_per_tile, tile_size=model.vision.tile_size, vocab_size=model.language.vocab_size
    )
    pictures = [len(dataset.pack(pack).tiles_NCHW) > 0 for pack in range(16)]
    steps = {frozenset(pictures[first : first + 2]) for first in range(0, 16, 2)}
    assert steps >= {frozenset((True, False)), frozenset((False,))}, "one rank has pictures and the other none; and neither has any"

    from mindspeed_vita.engine.loop import train

    train(recipes[0])
    trained(recipes[1], *options)
    check_keys("`--engine hf`", tmp_path / "hf", without=["mfu"])
    check_tensorboard(tmp_path / "hf")
    check_openmetrics(tmp_path / "hf")
    for own, other in zip(lines_of(tmp_path / "hf"), lines_of(tmp_path / "builtin"), strict=True):
        assert set(own) == set(other)
        parts = [own[f"{part}_seconds"] for part in ("forward", "backward", "optimizer")]
        assert all(seconds > 0 for seconds in parts) and sum(parts) <= own["seconds"]
        for key in own:
            if key.startswith("loss"):
                assert own[key] == pytest.approx(other[key], abs=1e-4), key
            if key.startswith("grad_norm"):
                assert own[key] == pytest.approx(other[key], rel=1e-3), key
        for key in ("supervised", "supervised_share", "samples", "flops", "flops_attention", "flops_tower", "packs", "lr", "lr/projector"):
            assert own[key] == pytest.approx(other[key], rel=1e-12), key


def test_a_start_that_was_exported_from_other_weights_is_refused(tiny: TinyData, tmp_path: Path, start: dict[str, Any]) -> None:
    from mindspeed_vita.integration.hf_trainer.run import start_folder

    def named(init: Path) -> Recipe:
        return tiny.recipe(tmp_path, checkpoint={"init_from": str(init)})

    first, other = Path(start["init"]), Path(start["init"]).parent / "builtin"
    folder = start_folder(named(first), None, resumed=False)
    assert folder == start_folder(named(first), None, resumed=False)
    with pytest.raises(ValueError, match=r"start is an export of other weights than those of \S+builtin\S*; remove it"):
        start_folder(named(other), None, resumed=False)
    assert start_folder(named(other), None, resumed=True) == folder, "a checkpoint has the weights"


def test_a_pipeline_measures_and_hands_over_what_trainer_exports(
    tiny: TinyData, tmp_path: Path, start: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny.recipe(tmp_path / "run", checkpoint={"init_from": start["init"]}, train={**TRAIN, "steps": 2})
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(recipe_to_dict(recipe)))
    stage: dict[str, Any] = {"name": "first", "recipe": "first.yaml", "start": "recipe", "engine": "hf"}
    stage["after"] = [f"convert --from {{run}}/export --to native --output {tmp_path / 'native'}"]

    def run(bound: float) -> tuple[int, str]:
        gate = f"loss --mixture {tiny.held_out} --packs 1 --at-most {bound}"
        (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump({"name": "p", "stages": [{**stage, "gates": [gate]}]}))
        return main(["pipeline", str(tmp_path / "pipeline.yaml")]), capfd.readouterr().out

    status, said = run(0.01)
    assert status == 1 and "p, first: HELD BACK: gate held_out_loss: measured " in said
    told = replace(recipe, checkpoint=replace(recipe.checkpoint, init_from=str(tmp_path / "run/export"), directory=str(tmp_path / "next")))
    with pytest.raises(ValueError, match="step_0000002 is held back: gate held_out_loss"):
        named_start(told)
    status, said = run(100)
    assert status == 0 and f"p, first: trained before, {tmp_path / 'run/checkpoint-2'}" in said and said.rstrip().endswith("p, first: done")
    assert (tmp_path / "native" / "step_0000000").is_dir() and named_start(told) == tmp_path / "run/export"


def test_bf16_keeps_fp32_weights_without_deepspeed(tiny: TinyData, tmp_path: Path, start: dict[str, Any]) -> None:
    # updates of bf16 weights would be lost in their rounding: the curve was 3e-2 off
    recipe = tiny.recipe(tmp_path / "bf16", checkpoint={"init_from": start["init"]}, train={**TRAIN, "precision": "bf16"})
    recipe = replace(recipe, logging=replace(recipe.logging, peak_tflops=1.0))
    torch.testing.assert_close(trained(recipe, processes=1), start["losses"], atol=1e-2, rtol=0)
    assert read_metrics(tmp_path / "bf16", "mfu") == pytest.approx(read_metrics(tmp_path / "bf16", "tflops_per_device"))
    # killed after the last checkpoint, before the export: the same command writes it
    export = tmp_path / "bf16" / "export"
    before = (export / "model.safetensors").read_bytes()
    shutil.rmtree(export)
    trained(recipe, processes=1, said=f"continuing from {tmp_path / 'bf16' / 'checkpoint-20'}")
    assert (export / "model.safetensors").read_bytes() == before and lineage.of_checkpoint(export).step == 20


@pytest.mark.parametrize("offload", [{}, {"offload_optimizer": {"device": "cpu"}}], ids=["device", "host"])
def test_zero_1_in_bf16_has_the_norms_of_the_modules(
    offload: dict[str, Any], tiny: TinyData, tmp_path: Path, start: dict[str, Any]
) -> None:
    zero = {"stage": 1, **offload}
    words = {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto", "gradient_clipping": "auto"}
    content = {"bf16": {"enabled": "auto"}, **words, "zero_optimization": zero, "zero_force_ds_cpu_optimizer": False}
    (tmp_path / "ds.json").write_text(json.dumps(content))
    settings = {**TRAIN, "precision": "bf16", "steps": 3}
    recipe = tiny.recipe(tmp_path / "zero1", checkpoint={"init_from": start["init"]}, train=settings)
    trained(recipe, "--deepspeed", str(tmp_path / "ds.json"))
    own = module_norms(tmp_path / "zero1")
    assert own[0] == pytest.approx(start["modules"][0], rel=2e-2) and len(own) == 3


AWAY = """
import os
import pathlib

from mindspeed_vita.integration.hf_trainer.trainer import PackTrainer

train = PackTrainer.train

def and_the_start_goes_away(self, *words, **names):
    done = train(self, *words, **names)
    start = pathlib.Path(os.environ["START_OF_THE_RUN"])
    start.rename(start.with_name("away"))
    return done

PackTrainer.train = and_the_start_goes_away
"""


def test_a_start_that_goes_away_while_the_run_trains_is_in_the_record_of_the_export(
    tiny: TinyData, tmp_path: Path, start: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    init = shutil.copytree(start["init"], tmp_path / "init")
    (tmp_path / "goes_away.py").write_text(AWAY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("START_OF_THE_RUN", str(init))
    recipe = tiny.recipe(tmp_path / "run", checkpoint={"init_from": str(init)}, train={"steps": 2})
    trained(replace(recipe, plugins=("goes_away",)), processes=1)
    record = lineage.of_checkpoint(tmp_path / "run" / "export")
    assert not init.exists() and record.step == 2 and len(record.parents) == 1


def test_what_trainer_cannot_do_is_refused(tiny: TinyData, tmp_path: Path) -> None:
    from mindspeed_vita.integration.hf_trainer.deepspeed_file import deepspeed_settings
    from mindspeed_vita.integration.hf_trainer.refusals import check
    from mindspeed_vita.integration.hf_trainer.settings import naming_the_compiler, sharing_of

    with pytest.raises(ValueError, match="parallel.tp=2.*train.recompute=selective"):
        check(tiny.recipe(tmp_path, parallel={"tp": 2}, train={"recompute": "selective"}))
    with pytest.raises(ValueError, match="no such file"):
        deepspeed_settings("zero4")
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW"}}')
    with pytest.raises(ValueError, match="section optimizer; leave it out"):
        deepspeed_settings(str(tmp_path / "ds.json"))
    with pytest.raises(ValueError, match="failed to build.*zero_force_ds_cpu_optimizer.: false"), naming_the_compiler():
        raise RuntimeError("DeepSpeedCPUAdam requires the cpu_adam op, which failed to build/load.")
    with pytest.raises(ValueError, match="--deepspeed and --fsdp both share weights"):
        sharing_of(deepspeed_settings("zero2"), fsdp=True)
    with pytest.raises(ValueError, match="--fsdp needs a launcher"):
        sharing_of(None, fsdp=True)
