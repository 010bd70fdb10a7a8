"""Adapters trained by real MindSpeed-LLM: the built-in engine's curve, checkpoints of adapters only, and what they become."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mindspeed_vita.checkpoint.adapter.source import open_adapter
from mindspeed_vita.checkpoint.megatron import rank_files
from mindspeed_vita.cli.main import main
from mindspeed_vita.engine.loop import train
from mindspeed_vita.models.lora import is_adapter
from tests.integration.conftest import save_fresh_weights
from tests.integration.mindspeed_run import MindSpeed
from tests.tiny_data import TinyData, read_metrics

LORA = {"rank": 4, "alpha": 8, "parts": ["language", "vision", "projector"]}
STEPS = 6


SIZES = {"tp2": {"tp": 2}, "pp2cp2": {"pp": 2, "cp": 2}, "pp2, 2 virtual stages": {"pp": 2, "virtual_stages": 2}}


@pytest.mark.parametrize("layout", SIZES)
def test_adapters_train_the_built_in_engines_curve_continue_and_convert(mindspeed: MindSpeed, tiny: TinyData, tmp_path: Path, layout: str):
    def recipe(name: str, **sections: Any) -> Any:
        told = tiny.recipe(tmp_path / name, train={"steps": STEPS}, **sections)
        language = replace(told.model.language, num_layers=4 if "virtual" in layout else 2)
        return replace(told, model=replace(told.model, language=language))

    start = save_fresh_weights(recipe("weights"), tmp_path / "weights")
    settings, sizes = {"lora": LORA, "checkpoint": {"init_from": str(start), "save_every": 3}}, SIZES[layout]
    built_in, inside = recipe("built_in", **settings), recipe("inside", parallel=sizes, **settings)
    train(built_in)
    expected, world = dict(enumerate(read_metrics(tmp_path / "built_in"), 1)), 4 if "cp" in sizes else 2
    name = "lora_" + "_".join(sizes)
    first = mindspeed.train(inside, world, name, flags=["--exit-interval", "3"])
    assert mindspeed.off_by(f"fp32, LoRA, {layout}, built-in engine's curve", world, first, expected) <= 1e-6
    second = mindspeed.train(inside, world, f"{name}_resumed")
    assert second.status == 0 and sorted(second.losses) == [4, 5, 6], second.text[-3000:]
    assert mindspeed.off_by(f"fp32, LoRA, {layout}, resumed, built-in engine's curve", world, second, expected) <= 1e-6
    for path in rank_files.rank_files(tmp_path / "inside").values():
        assert all(is_adapter(name) for chunk in rank_files.native_weights(path) for name in chunk)
    ours, theirs = (open_adapter(tmp_path / folder) for folder in ("built_in", "inside"))
    assert theirs.format == "mindspeed-llm" and theirs.lora.base_fingerprint == ours.lora.base_fingerprint
    found, wanted = theirs.read(inside.model), ours.read(inside.model)
    assert set(found) == set(wanted)
    for matrix in wanted:
        torch.testing.assert_close(found[matrix], wanted[matrix], rtol=0, atol=1e-4)  # AdamW divides by gradients that are nearly 0
    assert main(["convert", "--from", str(tmp_path / "inside"), "--to", "peft", "--output", str(tmp_path / "peft")]) == 0
    assert all(torch.equal(open_adapter(tmp_path / "peft").read(inside.model)[matrix], found[matrix]) for matrix in found)


def test_bf16_weights_have_fp32_adapters(mindspeed: MindSpeed, tiny: TinyData, weights: Path, tmp_path: Path):
    settings = {"steps": 3, "precision": "bf16"}
    told = tiny.recipe(tmp_path / "bf16", lora=LORA, train=settings, checkpoint={"init_from": str(weights), "save_every": 3})
    printed = mindspeed.train(told, 1, "lora_bf16")
    assert printed.status == 0 and len(printed.losses) == 3, printed.text[-3000:]
    adapters = open_adapter(tmp_path / "bf16").read(told.model)
    assert {adapters[name].dtype for name in adapters} == {torch.float32}
    assert all(bool(adapters[name].any()) for name in adapters)
