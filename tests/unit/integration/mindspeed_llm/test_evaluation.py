"""When the packs of a held-out evaluation are in host memory: from just before Megatron evaluates until the next step begins."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from mindspeed_vita.config import recipe_from_dict
from mindspeed_vita.integration.mindspeed_llm import step as module


@pytest.mark.parametrize(("done", "read"), [(0, []), (4, []), (5, []), (10, [10])])
def test_packs_are_read_where_megatron_evaluates_next_and_dropped_where_it_trains(
    monkeypatch: pytest.MonkeyPatch, done: int, read: list[int]
) -> None:
    """Megatron evaluates after a step, or at once where a resumed run has no step left."""
    found: list[int] = []

    def packs(step: int) -> Iterator[str]:
        found.append(step)
        yield "pack"

    nothing = SimpleNamespace(settle=lambda *arguments, **named: None, agree=lambda batch, *arguments: batch, empty_steps=0)
    held_out = SimpleNamespace(read=packs, failed=nothing, layout=SimpleNamespace(dp_cp_group=None), lost=0)
    monkeypatch.setattr(dist, "all_reduce", lambda *arguments, **named: None)
    monkeypatch.setattr(module, "HeldOutPacks", lambda *arguments, **named: held_out)
    watch = SimpleNamespace(step_begins=lambda: None, step_ended=lambda: None, stop=None)
    forward: Any = module.ForwardStep(SimpleNamespace(), watch)  # type: ignore[arg-type]
    forward.recipe = recipe_from_dict({"stage": 1, "train": {"steps": 10}, "eval": {"every": 5}})
    forward.layout = forward.host = SimpleNamespace(pp_size=1, cp_rank=0, dp_cp_group=None)
    forward.log = SimpleNamespace(begin=lambda: None, finish=lambda *arguments, **named: None)
    forward.done, forward.failed, forward._shard = done, nothing, None
    forward._micro_batches, forward._loaded = 1, iter(lambda: "trained", None)
    forward.hold_out(None, None)
    assert found == read
    for step in range(done + 1, 11):
        forward.start_step()
        assert forward.evaluation._batches == []
        forward.finish_step({}, grad_norm=0.0, rate=0.0)
        assert forward.evaluation._batches == (["pack"] if step % 5 == 0 else [])
    assert found == [step for step in (5, 10) if step > done or step in read]
