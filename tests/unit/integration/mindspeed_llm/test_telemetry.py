"""The lines that a run of MindSpeed-LLM writes: of the step alone, whatever Megatron averages over, and whole once the run is over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mindspeed_vita.engine.session import distributed
from mindspeed_vita.integration.mindspeed_llm import telemetry
from mindspeed_vita.platform import get_platform
from tests.metrics_table import check_openmetrics, check_tensorboard, lines_of
from tests.tiny_data import TinyData, tiny

__all__ = ["tiny"]


def test_losses_by_source_are_of_the_step_also_where_megatron_logs_less_often(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "seconds_of_saves", lambda: 0.0)
    recipe = tiny.recipe(tmp_path, logging={"every": 2, "tensorboard": True, "openmetrics": True})
    platform, loader = get_platform(), SimpleNamespace(waited=0.0)
    with distributed(recipe, platform) as layout:
        log = telemetry.StepLog(recipe, replace(layout), platform, loader, names=("loss/a", "loss/b"), step=0)  # type: ignore[arg-type]
        for step in range(1, 5):
            log.begin()
            for loss in (step, step + 1.0):
                only_a = [[2 * loss, 2.0], [2 * loss, 2.0], [0.0, 0.0]]
                log.add(torch.tensor([[3 * loss, 3.0], [loss, 1.0], [2 * loss, 2.0]] if step == 4 else only_a))
            log.finish(step, torch.tensor(step + 0.5), grad_norm=1.0, rate=0.1, failed=0)
        log.close()
    found = [{key: value for key, value in line.items() if key in ("step", "loss") or "/" in key} for line in lines_of(tmp_path)]
    assert found == [
        {"step": 1, "loss": 1.5, "loss/a": 1.5},
        {"step": 2, "loss": 2.5, "loss/a": 2.5},
        {"step": 4, "loss": 4.5, "loss/a": 4.5, "loss/b": 4.5},
    ]
    check_tensorboard(tmp_path)
    check_openmetrics(tmp_path)
