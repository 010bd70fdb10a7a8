"""The pool of workers itself: groups that cannot be formed, and what each rank met."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mindspeed_vita.checks.parity.pool import LayoutPool

HERE = "tests.distributed.test_pool"


def break_off() -> None:
    """Prepares a worker: rank 1 cannot form its groups, in as many starts as the file BREAKS says."""
    from megatron.core import parallel_state

    form, breaks = parallel_state.initialize_model_parallel, Path(os.environ["BREAKS"])

    def broken(*arguments: Any, **options: Any) -> None:
        left = int(breaks.read_text(encoding="utf-8"))
        if os.environ["LOCAL_RANK"] == "1" and left:
            breaks.write_text(str(left - 1), encoding="utf-8")
            raise RuntimeError("connectFullMesh failed: Connection closed by peer")
        form(*arguments, **options)

    parallel_state.initialize_model_parallel = broken


def rank(layout: Any) -> int:
    """Tensor rank of the caller."""
    return int(layout.tp_rank)


def fail(layout: Any) -> None:
    """Fails on every rank, with its number."""
    raise ValueError(f"tensor rank {layout.tp_rank} fails")


def test_groups_that_break_off_are_tried_once_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    breaks = tmp_path / "breaks"
    breaks.write_text("1", encoding="utf-8")
    pool = LayoutPool(2, prepare=f"{HERE}:break_off", environment={"BREAKS": str(breaks)})
    try:
        assert pool.run(f"{HERE}:rank", tp=2) == [0, 1]
        assert "Connection closed by peer" in capsys.readouterr().err
        breaks.write_text("2", encoding="utf-8")
        with pytest.raises(RuntimeError, match="rank 1:(?s:.)*Connection closed by peer"):
            pool.run(f"{HERE}:rank", tp=2)
        assert pool.closed
        assert breaks.read_text(encoding="utf-8") == "0"
    finally:
        pool.close()


def test_each_rank_says_what_it_met(pools: Any) -> None:
    pool = pools("installed")
    with pytest.raises(RuntimeError, match="(?s)tensor rank [01] fails.*tensor rank [01] fails"):
        pool.run(f"{HERE}:fail", tp=2)
    assert pool.closed
