"""Findings of `vita data check` and `vita data import` as lines: each kind once, with a count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from mindspeed_vita.data.checking import RowProblem

_SHOWN = 20
"""Kinds of findings that are printed."""


def print_findings(findings: Sequence[RowProblem], file: TextIO | None = None) -> None:
    """One line for each kind: the first finding of it, how many more there are, and where the last is. None: standard output."""
    from mindspeed_vita.data.budget import kind_of

    kinds: dict[str, list[RowProblem]] = {}
    for finding in findings:
        kinds.setdefault(kind_of(finding.reason), []).append(finding)
    for same in list(kinds.values())[:_SHOWN]:
        more = f"; and {len(same) - 1:,} more like it, the last at {same[-1].where}" if len(same) > 1 else ""
        print(f"  {same[0].where}: {same[0].reason}{more}", file=file)
    if len(kinds) > _SHOWN:
        print(f"  and {len(kinds) - _SHOWN:,} more kinds of findings", file=file)
