"""Visual needles under tensor and context parallelism: the stored tiny model gives the answers of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.pools import Pools

MODEL = Path(__file__).resolve().parents[1] / "assets" / "needle_tiny"
GRID: dict[str, Any] = {
    "lengths": (64,), "depths": (0.0, 0.6), "tasks": ("colour",), "samples": 3, "wall": "black", "distractor_every": 4, "control": True,
}  # fmt: skip


@pytest.mark.distributed
def test_every_layout_gives_one_process_s_answers(pools: Pools, tmp_path: Path) -> None:
    found = {}
    for tp, cp in ((1, 1), (1, 2), (2, 2)):
        folder = tmp_path / f"tp{tp}_cp{cp}"
        folder.mkdir()
        arguments = {"model": str(MODEL), "folder": str(folder), "grid": GRID}
        found[tp, cp] = next(filter(None, pools("installed").run("tests.distributed.needle_runs:asked", tp=tp, cp=cp, **arguments)))
    assert found[1, 1] == found[1, 2] == found[2, 2]
    assert len(found[1, 1]) == 12 and sum(right for _, right in found[1, 1].values()) >= 6, "all needles, and blanked ones by chance"
