"""The profiler's window: which ranks and steps have a trace, what is named in it, and that a run learns the same with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import pytest

from mindspeed_vita.config import recipe_to_dict
from mindspeed_vita.platform.phases import PHASES, PREFIX
from tests.pools import Pools
from tests.tiny_data import TinyData

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
RUN = "tests.distributed.layout_runs:run"
MICRO_BATCHES, LAYERS = 4, 2
Columns = Callable[..., list[float]]
Range = tuple[float, float]


def named_ranges(path: Path) -> dict[str, list[Range]]:
    """Start and end, in microseconds, of every range of a Chrome trace that has a name of ours."""
    found: dict[str, list[Range]] = {}
    for event in json.loads(path.read_text())["traceEvents"]:
        if event.get("ph") == "X" and event["name"].startswith(PREFIX):
            found.setdefault(event["name"].removeprefix(PREFIX), []).append((event["ts"], event["ts"] + event["dur"]))
    return found


def traces(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.glob("profile/*"))


@pytest.fixture(scope="module")
def content(tiny: TinyData) -> Callable[..., dict[str, Any]]:
    """A recipe that recomputes layers, and evaluates between its steps."""
    held_out = {"mixture": tiny.held_out, "every": 1, "packs": 2}
    train = {"steps": 5, "recompute": "full", "global_batch": MICRO_BATCHES}
    return lambda folder, **profile: recipe_to_dict(tiny.recipe(folder, train=train, eval=held_out, profile=profile))


def test_the_asked_rank_writes_the_asked_steps_with_every_phase(
    pools: Pools, content: Callable[..., dict[str, Any]], curve: Columns, tmp_path: Path
) -> None:
    plain, traced = tmp_path / "plain", tmp_path / "traced"
    pools("installed").run(RUN, cp=2, content=content(plain))
    pools("installed").run(RUN, cp=2, content=content(traced, steps=[3, 4], ranks=[1]))
    for column in ("loss", "grad_norm", "eval/loss"):
        assert curve(traced, column) == curve(plain, column)
    assert traces(plain) == [] and traces(traced) == ["profile/step_0000003_rank_1.json"]

    ranges = named_ranges(traced / "profile" / "step_0000003_rank_1.json")
    assert set(ranges) == {"step 3", "step 4", *PHASES}
    steps = [ranges.pop("step 3"), ranges.pop("step 4")]
    assert [len(step) for step in steps] == [1, 1]
    for name, found in ranges.items():
        for start, end in found:
            assert any(step[0][0] <= start <= end <= step[0][1] for step in steps), f"{name} lies outside of the steps"
    counts = {name: len(found) / (2 * MICRO_BATCHES) for name, found in ranges.items()}
    # a micro-batch: data is read, then cut. Attention: forward, again with recompute=full, backward; once a layer. The update: norm, step
    exchanged = counts.pop("exchange")  # forward and backward where a pack has tiles
    both_ways = {name + way: 1 for name in ("tower", "layers") for way in ("", " backward")}
    assert counts == {"data": 2, **both_ways, "ring": 3 * LAYERS, "head": 2, "optimizer": 2 / MICRO_BATCHES}
    assert 0 < exchanged <= 2
    backward = sorted(ranges["layers backward"])
    within = [any(start <= first and last <= end for start, end in backward) for first, last in ranges["ring"]]
    assert sum(within) == 2 * LAYERS * 2 * MICRO_BATCHES, "what is recomputed, and its gradient"
    for (_, end), (start, _) in zip(backward, sorted(ranges["tower backward"])):
        assert end <= start, "the tower's gradients follow on those of the layers"


def test_a_run_that_stops_in_its_window_writes_what_it_did_and_goes_on(
    pools: Pools, content: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    recipe = content(tmp_path, steps=[2, 5], ranks=[0, 1])
    pools("installed").run(RUN, cp=2, content=recipe, stop=3)
    pools("installed").run(RUN, cp=2, content=recipe)
    for rank in (0, 1):
        found = {first: named_ranges(tmp_path / "profile" / f"step_000000{first}_rank_{rank}.json") for first in (2, 4)}
        assert {name for name in found[2] if "step" in name} == {"step 2", "step 3"}
        assert {name for name in found[4] if "step" in name} == {"step 4", "step 5"}
    assert len(traces(tmp_path)) == 4


def test_exchanges_are_timed_as_parts_of_the_passes(pools: Pools, content: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    pools("installed").run(RUN, cp=2, content=content(tmp_path))
    for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()):
        if "loss" in line:
            assert 0 < line["exchange_seconds"] < line["forward_seconds"] + line["backward_seconds"]
