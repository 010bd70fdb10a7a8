"""Two ranks that save behind training's back, send to a store that refuses for a while, keep the best step and keep what is not sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.checkpoint.native.stored_steps import StoredSteps
from mindspeed_vita.config import recipe_to_dict
from mindspeed_vita.files.writing import write_bytes
from tests.pools import Pools
from tests.tiny_data import TinyData

SENDING = "tests.distributed.saving_runs:sending"


@pytest.mark.distributed
@pytest.mark.slow
def test_what_a_store_refused_is_kept_and_sent_later_with_the_best_step(pools: Pools, tiny: TinyData, tmp_path: Path) -> None:
    """All steps have the same weights, so the first one that is measured stays the best."""
    run, store = tmp_path / "run", f"file://{tmp_path / 'store'}"
    checkpoint = {"save_every": 3, "keep": 1, "background": True, "store": store, "keep_unsent": True}
    held_out = {"mixture": tiny.held_out, "every": 2, "packs": 2, "keep_best": True}
    recipe = tiny.recipe(run, train={"steps": 12, "lr": 0.0, "min_lr": 0.0}, checkpoint=checkpoint, eval=held_out)
    told: dict[str, Any] = {"dp": 2, "content": recipe_to_dict(recipe)}
    steps = StoredSteps(store)

    def names() -> tuple[list[str], list[str], list[str]]:
        whole = [name for name in steps.names() if steps.is_whole(name)]
        return [path.name for path in atomic.complete_steps(run)], atomic.unsent_steps(run), whole

    lines, _ = pools("installed").run(SENDING, **told, stop=7, refusals=10**6)
    kept = [atomic.step_name(step) for step in (2, 3, 6, 7)]
    assert names() == (kept, kept, [])
    assert "step_0000002 could not be sent (rank 1): slow down" in lines[0] and "; the next start of the same command" in lines[-1], lines

    lines, _ = pools("installed").run(SENDING, **told, refusals=2)
    best, last = "step_0000002", "step_0000012"
    here, unsent, there = names()
    assert unsent == [] and there == [best, last] and {best, last} <= {*here}, lines
    assert sum("could not be sent (rank 1): slow down" in line for line in lines) == 2, lines
    assert all(any(line.startswith(f"{name} is in {store}") for line in lines) for name in there), lines
    assert atomic.kept_best(run) == run / best and json.loads(steps.store.read(atomic.BEST))["step"] == 2
    for name in there:
        marker, sizes = steps.listed(name)
        assert steps.fetch(name, tmp_path / "fetched" / name, sizes, marker) == [] and len(sizes) == len(atomic.recorded(run / name))
        write_bytes(tmp_path / "fetched" / name / atomic.CHECKSUMS, marker)
    assert native.load_state(native.find(tmp_path / "fetched")).step == 12
    assert steps.read("metrics.jsonl") == (run / "metrics.jsonl").read_bytes()
