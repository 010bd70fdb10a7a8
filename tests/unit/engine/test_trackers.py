"""logging.wandb and logging.swanlab: what the services are given. Stand-ins record it; the real packages run offline, if installed."""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mindspeed_vita.config import recipe_from_dict
from mindspeed_vita.engine import trackers
from mindspeed_vita.engine.loop import train
from mindspeed_vita.engine.trackers import IDENTITY, Tracker
from tests.tiny_data import TinyData

LINES = [
    {"step": 1, "loss": 2.0, "loss/ocr": 3, "why": "text", "none": None, "flag": True},
    {"step": 1, "eval/loss": 2.5},
]


class Run:
    """A run of either service."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.told, self.lines, self.by, self.finished = told, list[tuple[dict[str, Any], Any]](), "", 0

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.by = f"{name} over {step_metric}"

    def log(self, data: dict[str, Any], step: Any = None) -> None:
        self.lines.append((data, step))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture(params=["wandb", "swanlab"])
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[Run]]:
    """A stand-in for the package, and the runs that were begun."""
    module, runs = ModuleType(request.param), list[Run]()

    def init(**told: Any) -> Run:
        runs.append(Run(told))
        return runs[-1]

    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, request.param, module)
    return request.param, runs


def test_a_run_and_what_continues_it_are_one_run_there(service: tuple[str, list[Run]], tiny: TinyData, tmp_path: Path) -> None:
    name, runs = service
    for steps in (2, 4):
        train(tiny.recipe(tmp_path / "run", train={"steps": steps}, logging={name: "vita"}))
    first, second = runs
    assert first.told["id"] == second.told["id"] == (tmp_path / "run" / IDENTITY).read_text().strip()
    assert first.told["project"] == "vita" and first.told["name"] == "tiny" and first.told["resume"] == "allow"
    assert first.told["config"]["train"]["steps"] == 2 and str(tmp_path / "run") in first.told.get("dir", first.told.get("log_dir"))
    steps = [data.get("step", step) for run in runs for data, step in run.lines]
    assert steps == [1, 2, 3, 4] and all("loss" in data and "tokens_per_second" in data for run in runs for data, _ in run.lines)
    assert first.finished == second.finished == 1
    train(tiny.recipe(tmp_path / "other", train={"steps": 1}, logging={name: "vita"}))
    assert runs[-1].told["id"] != first.told["id"]


def test_numbers_go_there_under_the_step(service: tuple[str, list[Run]], tmp_path: Path) -> None:
    name, runs = service
    tracker = Tracker(name, recipe_from_dict({}), "vita", tmp_path)
    for line in LINES:
        tracker.write(line, evaluation="eval/loss" in line)
    if name == "wandb":  # which counts calls, and takes the step as a number like others
        assert runs[0].by == "* over step"
        assert runs[0].lines == [({"step": 1, "loss": 2.0, "loss/ocr": 3}, None), ({"step": 1, "eval/loss": 2.5}, None)]
    else:
        assert runs[0].lines == [({"loss": 2.0, "loss/ocr": 3}, 1), ({"eval/loss": 2.5}, 1)]


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_a_package_that_is_missing_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"^logging\.{name}=vita: the package {name} is not installed; pip install {name}, or leave"):
        Tracker(name, recipe_from_dict({}), "vita", tmp_path)


def test_a_service_that_does_not_start_says_how_to_do_without(service: tuple[str, list[Run]], tmp_path: Path) -> None:
    name, _ = service

    def init(**told: Any) -> None:
        raise RuntimeError("no API key")

    sys.modules[name].init = init  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=rf"{name} does not start \(no API key\); log in .*{name.upper()}_MODE=offline keeps everything"):
        Tracker(name, recipe_from_dict({}), "vita", tmp_path)


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_the_real_package_takes_a_run_offline(name: str, tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.setenv(f"{name.upper()}_MODE", "offline")
    for steps in (2, 3):
        train(tiny.recipe(tmp_path / "run", train={"steps": steps}, logging={name: "vita"}))
    assert [path for path in (tmp_path / "run" / name).rglob(f"*.{name}") if path.stat().st_size]


def test_a_service_that_does_not_end_is_not_waited_for(
    service: tuple[str, list[Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, runs = service
    never = threading.Event()
    monkeypatch.setattr(trackers, "_LONGEST_END", 0.05)
    tracker = Tracker(name, recipe_from_dict({}), "vita", tmp_path)
    monkeypatch.setattr(runs[0], "finish", never.wait)
    tracker.close()
    assert f"vita: {name} did not take the last numbers" in capsys.readouterr().err
    never.set()


def test_a_service_that_fails_costs_its_numbers_and_not_the_run(
    service: tuple[str, list[Run]], tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, runs = service
    log, told = Run.log, 0

    def fails(run: Run, data: dict[str, Any], step: Any = None) -> None:
        nonlocal told
        told += 1
        if told > 1:
            raise BrokenPipeError(32, "Broken pipe")
        log(run, data, step)

    def ends(run: Run) -> None:
        raise RuntimeError("the service is gone")

    monkeypatch.setattr(Run, "log", fails)
    monkeypatch.setattr(Run, "finish", ends)
    assert train(tiny.recipe(tmp_path / "run", train={"steps": 4}, logging={name: "vita"})).step == 4
    assert len(runs[0].lines) == 1 and len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4
    said = capsys.readouterr().err
    failed = f"vita: logging.{name}: the service failed (BrokenPipeError: [Errno 32] Broken pipe); it gets no numbers from step 2"
    assert said.count(failed) == 1
    assert f"vita: logging.{name}: the service did not end in order (RuntimeError: the service is gone)" in said and "Traceback" not in said
