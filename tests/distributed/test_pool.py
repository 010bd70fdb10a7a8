"""The pool of workers itself: groups that cannot be formed, and what each rank met."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mindspeed_vita.checks.parity import pool as parity_pool
from mindspeed_vita.checks.parity.pool import LayoutPool, _Failure

HERE = "tests.distributed.test_pool"


def rank(layout: Any) -> int:
    """Tensor rank of the caller."""
    return int(layout.tp_rank)


def fail(layout: Any) -> None:
    """Fails on every rank, with its number."""
    raise ValueError(f"tensor rank {layout.tp_rank} fails")


def test_groups_that_cannot_be_formed_are_tried_once_more(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity_pool, "LAST_WORDS", 300.0)  # both ranks answer, on a busy machine later than after five seconds
    pool = LayoutPool(2)
    try:
        Path(pool._folder.name, "group_1").mkdir()  # the first run's ranks meet in a file of this name
        assert pool.run(f"{HERE}:rank", tp=2) == [0, 1]
        assert "rank 1:" in capsys.readouterr().err
        with pytest.raises(RuntimeError, match="(?s)tensor rank [01] fails.*tensor rank [01] fails"):
            pool.run(f"{HERE}:fail", tp=2)
        assert pool.closed, "a run that failed by itself is not tried again"
    finally:
        pool.close()


def test_a_second_time_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[int] = []
    monkeypatch.setattr(LayoutPool, "_start_workers", lambda pool: starts.append(1))
    monkeypatch.setattr(LayoutPool, "_run_once", lambda *arguments: ({}, {1: _Failure("closed by peer", formed=False)}))
    pool = LayoutPool(2)
    pool._pipes = [None, None]  # type: ignore[list-item]
    monkeypatch.setattr(pool, "_end_workers", lambda: None)
    with pytest.raises(RuntimeError, match="rank 1:\nclosed by peer"):
        pool.run(f"{HERE}:rank", tp=2)
    assert len(starts) == 2
