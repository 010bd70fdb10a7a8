"""Sections of a hardware check in the order of their importance, under one limit of time: what no longer fits is named, not run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from mindspeed_vita.checks.hardware_check.report import Report

_MARGIN = 1.2
"""Times what a section like it took."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """Some checks or measurements that run together."""

    name: str
    run: Callable[[Report], None]
    seconds: float
    """Guess of what it takes on a slow accelerator; no accelerator was there to measure it."""
    like: str = ""
    """Section whose time, once it is known, is the guess instead."""


def run_sections(
    report: Report,
    sections: Sequence[Section],
    *,
    budget: float,
    after: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Runs sections in their order, as long as each is expected to end in time.

    Args:
        report: takes what they find.
        sections: the most important one first.
        budget: seconds that all of them have.
        after: called before the first section, as each one begins, and after each; it writes the report.
        clock: seconds from some moment on.
    """
    started = clock()
    after()
    for section in sections:
        left = budget - (clock() - started)
        known = report.seconds.get(section.like)
        expected = section.seconds if known is None else _MARGIN * known
        if expected > left:
            report.skip(section.name, f"it takes about {expected:.0f} s, and {max(left, 0.0):.0f} of {budget:.0f} s are left")
        else:
            report.section(section.name, partial(_begin, section, after))
        after()


def _begin(section: Section, after: Callable[[], None], report: Report) -> None:
    after()
    section.run(report)
