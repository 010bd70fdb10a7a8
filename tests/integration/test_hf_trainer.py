"""The engine on transformers' Trainer: the built-in engine's curve with ZeRO and sequence parallelism, text-only steps, exact resume."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mindspeed_vita.checkpoint import lineage
from mindspeed_vita.config import Recipe, recipe_to_dict
from tests.tiny_data import TinyData, read_metrics

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
TRAIN = {"vision_lr_mult": 0.5, "vision_layer_decay": 0.9, "weight_decay": 0.1}


@pytest.fixture(autouse=True, scope="module")
def needs_deepspeed() -> None:
    for package in ("accelerate", "deepspeed"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed; scripts/test.sh installs it")


def run(recipe: Recipe, *options: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """`vita train` under torchrun."""
    directory = Path(recipe.checkpoint.directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe_to_dict(recipe)))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*launcher, "-m", "mindspeed_vita.cli.main", "train", str(path), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def trained(recipe: Recipe, *options: str, said: str = "starting from") -> list[float]:
    done = run(recipe, "--engine", "hf", *options)
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
    return {"init": str(folder / "init"), "losses": losses, "norms": norms}


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_zero_gives_the_built_in_curve_and_resumes_bit_for_bit(
    stage: str, tiny: TinyData, tmp_path: Path, start: dict[str, Any]
) -> None:
    recipe = tiny.recipe(tmp_path / stage, checkpoint={"init_from": start["init"], "save_every": 10}, train=TRAIN)
    losses = trained(recipe, "--deepspeed", stage)
    torch.testing.assert_close(losses, start["losses"], atol=1e-4, rtol=0)
    torch.testing.assert_close(read_metrics(tmp_path / stage, "grad_norm"), start["norms"], atol=1e-3, rtol=1e-3)
    shutil.rmtree(tmp_path / stage / "checkpoint-20")
    left = tmp_path / stage / "checkpoint-10"
    assert trained(recipe, "--deepspeed", stage, said=f"continuing from {left}") == losses
    record = lineage.of_checkpoint(tmp_path / stage / "export")
    assert (record.made_by, record.step, len(record.parents)) == ("training", 20, 1)
    assert record.parents[0] == lineage.of_checkpoint(Path(start["init"])), "the export says which weights the run began with"


def test_sequence_parallel_gives_the_built_in_curve(tiny: TinyData, tmp_path: Path, start: dict[str, Any]) -> None:
    recipe = tiny.recipe(tmp_path / "sp", checkpoint={"init_from": start["init"]}, train=TRAIN, parallel={"cp": 2})
    torch.testing.assert_close(trained(recipe), start["losses"], atol=1e-5, rtol=0)


def test_steps_without_pictures_do_not_hang_under_zero3(tiny: TinyData, tmp_path: Path, start: dict[str, Any]) -> None:
    frozen = {"modules": ["projector", "language"]}  # a frozen tower is gathered when it is called, too
    sections: dict[str, Any] = {"data": {"mixture": tiny.two_sources}, "train": {**TRAIN, **frozen, "steps": 6, "global_batch": 2}}
    recipe = tiny.recipe(tmp_path / "text", checkpoint={"init_from": start["init"]}, **sections)
    assert len(trained(recipe, "--deepspeed", "zero3")) == 6


def test_what_trainer_cannot_do_is_refused(tiny: TinyData, tmp_path: Path) -> None:
    from mindspeed_vita.integration.hf_trainer.refusals import check
    from mindspeed_vita.integration.hf_trainer.settings import deepspeed_settings

    with pytest.raises(ValueError, match="parallel.tp=2.*train.recompute=selective"):
        check(tiny.recipe(tmp_path, parallel={"tp": 2}, train={"recompute": "selective"}))
    with pytest.raises(ValueError, match="no such file"):
        deepspeed_settings("zero4")
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW"}}')
    with pytest.raises(ValueError, match="section optimizer; leave it out"):
        deepspeed_settings(str(tmp_path / "ds.json"))
