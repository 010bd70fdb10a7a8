"""The scores of a needle test as files: needle.json, needle.svg and needle.png."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.evaluation.heat_map import Panel, write_heat_map
from mindspeed_vita.evaluation.needle_scores import Scores
from mindspeed_vita.files.publish import whole_file


def write_report(folder: Path, settings: Mapping[str, Any], scores: Scores, line_after: Optional[int] = None) -> tuple[Path, Path, Path]:
    """Writes the files; returns needle.json, needle.svg and needle.png.

    Args:
        folder: where they go; it exists.
        settings: of the test.
        scores: what came out.
        line_after: a length behind which the heat map has a line.
    """
    content = {
        "settings": dict(settings),
        "cells": scores.cells(),
        "prompt_tokens": sum(row["prompt_tokens"] for row in scores.rows),
        "cached_tokens": sum(row["cached_tokens"] for row in scores.rows),
        "requests": scores.rows,
    }
    path = folder / "needle.json"
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    svg, png = write_heat_map(panels(scores, line_after), folder / "needle", x_axis="frames", y_axis="depth")
    return path, svg, png


def panels(scores: Scores, line_after: Optional[int] = None) -> list[Panel]:
    """A panel for each task, and next to it the one of its control."""
    found = []
    for task in scores.tasks:
        for blank in (False, True) if scores.control else (False,):
            shares = [
                [_share(scores, task=task, length=length, depth=depth, blank=blank) for length in scores.lengths] for depth in scores.depths
            ]
            reached = None if line_after is None else sum(length <= line_after for length in scores.lengths)
            found.append(
                Panel(
                    title=f"{task}, needles blanked" if blank else task,
                    columns=[f"{length:,}" for length in scores.lengths],
                    rows=[f"{depth:g}" for depth in scores.depths],
                    shares=shares,
                    line_after=reached,
                )
            )
    return found


def _share(scores: Scores, **wanted: Any) -> Optional[float]:
    tally = scores.tally(**wanted)
    return tally.share if tally.asked else None
