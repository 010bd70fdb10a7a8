"""A plugin of the soak's recipe: in a rank that the real command started it leaves the process's id, and puts in the fault."""

from __future__ import annotations

import json
import os
from pathlib import Path

FAULT = "VITA_SOAK_FAULT"
"""Environment variable: the fault of this start as JSON; empty: none. Absent in ranks that the soak forks, which have theirs already."""
PIDS = "pid"
"""Start of the names of the files with process ids."""


def prepare() -> None:
    """Does both, where the environment asks for it."""
    told = os.environ.get(FAULT)
    if told is None or "RANK" not in os.environ:
        return
    path = Path(f"{os.environ['VITA_SOAK_PIDS']}.{os.environ['RANK']}")
    if path.exists():  # a process that the rank started
        return
    if told:
        from tests.train_faults import Fault

        Fault(**json.loads(told)).put_in()
    new = path.with_name(f"new_{path.name}")
    new.write_text(str(os.getpid()))
    new.rename(path)


prepare()
