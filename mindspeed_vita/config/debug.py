"""The section of a recipe that looks into single steps of a run."""

from __future__ import annotations

from dataclasses import dataclass

from mindspeed_vita.config.kinds import Section, Text


@dataclass(frozen=True, kw_only=True)
class DebugConfig(Section):
    """Finding the place where two runs part (docs/guides/compare_runs.md)."""

    msprobe: Text = ""
    """The config.json of msprobe (package mindstudio-probe), which writes what goes in and out of modules; empty: nothing is written."""
