"""Rows that teach what a needle test asks, in the project's format, with their frames. None of their haystacks is one of a test's."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_vita.evaluation.needle_cases import TASKS, Case, Haystack
from mindspeed_vita.evaluation.needle_grid import Grid
from mindspeed_vita.evaluation.needle_media import NeedleMedia
from mindspeed_vita.files.publish import whole_folder

ROWS = "rows.jsonl"
_MIXTURE = """\
dataset:
  needles: {ratio: 1.0, data_paths: [rows.jsonl]}
"""


@dataclass(frozen=True, kw_only=True)
class RowSettings:
    """What is written."""

    rows: int = 10000
    """How many."""
    side: int = 448
    """Pixels of a frame; best a tile's."""
    pool: int = 2048
    """Different frames of each kind: rows share them, so that the folder stays small."""


def write_rows(folder: Path, grid: Grid, settings: RowSettings, said: Callable[[int], None] = lambda done: None) -> int:
    """Writes rows.jsonl, mixture.yaml and the frames; returns how many frames.

    Args:
        folder: must not exist.
        grid: its lengths and tasks are drawn from evenly; the depth is drawn from 0 to 1. Depths, samples and control do not count.
        settings: how much.
        said: called with the number of rows that are done.

    Raises:
        ValueError: the folder exists, or settings out of range.
    """
    if folder.exists():
        raise ValueError(f"{folder} is there already; choose another folder, or remove it")
    if settings.rows < 1 or settings.side < 8 or settings.pool < 1:
        raise ValueError(f"rows={settings.rows}, side={settings.side}, pool={settings.pool}; expected at least 1 row, 8 pixels and 1 frame")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder, known_by=ROWS) as temporary:
        media = NeedleMedia(temporary, settings.side)
        temporary.mkdir()
        with (temporary / ROWS).open("w", encoding="utf-8") as file:
            for number in range(settings.rows):
                row = _row(_case(grid, settings, number), grid.media, media)
                file.write(json.dumps(row) + "\n")
                said(number + 1)
        (temporary / "mixture.yaml").write_text(_MIXTURE, encoding="utf-8")
        return len(media)


def _case(grid: Grid, settings: RowSettings, number: int) -> Case:
    seed = f"rows {grid.seed} row {number}"
    draw = random.Random(seed)
    haystack = Haystack(seed=seed, distractor_every=grid.distractor_every, asked_wall=grid.wall, pool=settings.pool)
    return Case(haystack=haystack, task=draw.choice(grid.tasks), length=draw.choice(grid.lengths), depth=draw.random())


def _row(case: Case, kind: str, media: NeedleMedia) -> dict[str, Any]:
    files = [str(file.relative_to(media.folder)) for file in media.draw(case.frames())]
    tags = "<image>\n" * len(files) if kind == "pictures" else "<video>\n"
    answer = TASKS[case.task].written(case.expected)
    messages = [{"role": "user", "content": tags + case.question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **({"images": files} if kind == "pictures" else {"videos": [files]})}
