"""What metrics.jsonl says about a step: its parts in seconds, tiles, the gradient norm of each module, and no key that no page names."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mindspeed_vita.engine.loop import train
from tests.metrics_table import check_keys, check_openmetrics, check_tensorboard
from tests.tiny_data import TinyData


def test_the_keys_are_those_of_the_page_and_reach_every_sink(tiny: TinyData, tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "data": {"mixture": tiny.two_sources},
        "train": {"steps": 4, "global_batch": 2, "precision": "bf16", "vision_lr_mult": 0.5},
        "eval": {"mixture": tiny.held_out, "every": 4, "packs": 2},
        "logging": {"tensorboard": True, "openmetrics": True, "peak_tflops": 1.0},
    }
    train(tiny.recipe(tmp_path, **sections))
    check_keys("built-in", tmp_path)
    check_tensorboard(tmp_path)
    check_openmetrics(tmp_path)


def test_the_share_of_supervised_tokens_is_left_out_where_samples_are_counted(tiny: TinyData, tmp_path: Path) -> None:
    for weighting in ("token", "sample"):
        train(tiny.recipe(tmp_path / weighting, train={"steps": 1}, data={"loss_weighting": weighting}))
    (tokens,), (samples,) = lines(tmp_path / "token"), lines(tmp_path / "sample")
    assert tokens["supervised_share"] == tokens["supervised"] / (4 * 128) and "supervised_share" not in samples


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_the_parts_of_a_step_are_timed_and_saving_stands_in_the_next_line(tiny: TinyData, tmp_path: Path) -> None:
    train(tiny.recipe(tmp_path, train={"steps": 4}, checkpoint={"save_every": 2, "keep": 0}))
    for line in (found := lines(tmp_path)):
        parts = [line[f"{part}_seconds"] for part in ("forward", "backward", "optimizer")]
        assert all(seconds > 0 for seconds in parts) and sum(parts) <= line["seconds"]
        assert line["tiles_per_second"] > 0
    assert [line["save_seconds"] > 0 for line in found] == [False, False, True, False], "step 2 was saved after its line was written"


@pytest.mark.parametrize("modules", [["vision", "projector", "language"], ["projector"]])
def test_the_norms_of_the_modules_make_up_the_norm(tiny: TinyData, tmp_path: Path, modules: list[str]) -> None:
    train(tiny.recipe(tmp_path, train={"steps": 3, "modules": modules}))
    for line in lines(tmp_path):
        norms = {key.removeprefix("grad_norm/"): line[key] for key in line if key.startswith("grad_norm/")}
        assert set(norms) == set(modules) and all(norm > 0 for norm in norms.values())
        assert math.sqrt(sum(norm**2 for norm in norms.values())) == pytest.approx(line["grad_norm"], rel=1e-5)


def test_a_module_with_a_learning_rate_of_its_own_has_a_column(tiny: TinyData, tmp_path: Path) -> None:
    train(tiny.recipe(tmp_path, train={"steps": 2, "vision_lr_mult": 0.5}))
    for line in lines(tmp_path):
        assert line["lr/vision"] == pytest.approx(line["lr"] / 2) and not {"lr/projector", "lr/language"} & set(line)
