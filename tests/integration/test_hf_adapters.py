"""LoRA on transformers' Trainer: peft's layers train the built-in engine's curve on the same packs, resume exactly, save adapters only."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mindspeed_vita.checkpoint import lineage
from mindspeed_vita.checkpoint.adapter.source import holds_adapters, open_adapter
from mindspeed_vita.cli.main import main
from tests.integration.conftest import save_fresh_weights
from tests.integration.test_hf_trainer import trained
from tests.tiny_data import TinyData, read_metrics

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
LORA = {"rank": 4, "alpha": 8, "parts": ["language", "vision", "projector"]}
TRAIN = {"steps": 12, "vision_lr_mult": 0.5, "vision_layer_decay": 0.9, "weight_decay": 0.1}
RUNS: list[Any] = [
    pytest.param("", {}, {"recompute": "full"}, id="plain"),
    pytest.param("zero3", {"cp": 2}, {}, id="zero3-cp2"),
]


@pytest.fixture(autouse=True, scope="module")
def needs_packages() -> None:
    for package in ("accelerate", "deepspeed", "peft"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed; scripts/test.sh installs it")


@pytest.fixture(scope="module")
def built_in(tiny: TinyData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The base, and twelve steps of adapters over it by the built-in engine."""
    from mindspeed_vita.engine.loop import train

    folder = tmp_path_factory.mktemp("hf_adapters")
    save_fresh_weights(tiny.recipe(folder / "base"), folder / "base")
    made = {"base": folder / "base", "run": folder / "run"}
    train(recipe(tiny, made["run"], made["base"]))
    return made


def recipe(tiny: TinyData, directory: Path, start: Path, **sections: Any) -> Any:
    train = {**TRAIN, **sections.pop("train", {})}
    return tiny.recipe(directory, lora=LORA, train=train, checkpoint={"init_from": str(start), "save_every": 6}, **sections)


@pytest.mark.parametrize(("deepspeed", "parallel", "train"), RUNS)
def test_peft_trains_the_built_in_engines_curve_and_resumes_bit_for_bit(
    tiny: TinyData, built_in: dict[str, Path], tmp_path: Path, deepspeed: str, parallel: Any, train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run"
    told = recipe(tiny, directory, built_in["base"], parallel=parallel, train=train)
    options = ["--deepspeed", deepspeed] if deepspeed else []
    losses = trained(told, *options, said="fresh adapters; adapters over")
    assert losses == pytest.approx(read_metrics(built_in["run"]), rel=1e-5)
    assert read_metrics(directory, "grad_norm") == pytest.approx(read_metrics(built_in["run"], "grad_norm"), rel=1e-4)

    files = [path for path in (directory / "checkpoint-6").rglob("*") if path.suffix in (".safetensors", ".pt", ".bin")]
    base = sum(path.stat().st_size for path in (directory / "start").glob("*.safetensors"))
    assert sum(path.stat().st_size for path in files if "optim" not in path.name) < base, "checkpoints hold no base"
    shutil.rmtree(directory / "checkpoint-12")
    assert trained(told, *options, said=f"continuing from {directory / 'checkpoint-6'}") == losses

    ours, theirs = (open_adapter(folder) for folder in (built_in["run"], directory / "adapter"))
    assert theirs.lora.base_fingerprint == ours.lora.base_fingerprint and holds_adapters(directory / "checkpoint-6")
    expected, found = ours.read(told.model), theirs.read(told.model)
    assert set(found) == set(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=2e-4)  # AdamW divides by gradients that are nearly 0
    record = lineage.of_checkpoint(directory / "adapter")
    assert (record.step, record.parents) == (12, (lineage.of_checkpoint(built_in["base"]),))
    texts = []
    for folder in (built_in["run"], directory / "adapter", directory / "checkpoint-12"):
        assert main(["generate", str(folder), "--prompt", "Count to 3.", "--max-new-tokens", "6"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] and len(set(texts)) == 1


def test_a_run_starts_from_adapters_of_the_built_in_engine_and_back(tiny: TinyData, built_in: dict[str, Path], tmp_path: Path) -> None:
    from mindspeed_vita.engine.loop import train

    ours, theirs = recipe(tiny, tmp_path / "ours", built_in["run"]), recipe(tiny, tmp_path / "theirs", built_in["run"])
    train(ours, stop_at_step=2)
    losses = trained(theirs, said=f"starting from the adapters of {built_in['run']}")
    assert losses[:2] == pytest.approx(read_metrics(tmp_path / "ours"), rel=1e-5)
    again = recipe(tiny, tmp_path / "again", tmp_path / "theirs" / "adapter")
    train(again, stop_at_step=1)
    assert read_metrics(tmp_path / "again")[0] < losses[0]


def test_bf16_weights_have_fp32_adapters(tiny: TinyData, built_in: dict[str, Path], tmp_path: Path) -> None:
    for name, options in {"plain": [], "zero2": ["--deepspeed", "zero2"]}.items():
        told = recipe(tiny, tmp_path / name, built_in["base"], train={"precision": "bf16", "steps": 3})
        assert len(trained(told, *options)) == 3
        matrices = open_adapter(tmp_path / name / "adapter").read(told.model)
        assert any(bool((matrices[key].bfloat16().float() != matrices[key]).any()) for key in matrices), "they were updated in fp32"
