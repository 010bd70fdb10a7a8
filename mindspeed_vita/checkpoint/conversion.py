"""What a conversion is told about its surroundings: where the weights come from, who hears how far it is, and whether it must go on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.checkpoint.lineage import Lineage
from mindspeed_vita.checkpoint.native.atomic import nothing
from mindspeed_vita.files.shard_stream import Journal, Report
from mindspeed_vita.files.unfinished import Planned, unfinished
from mindspeed_vita.files.write_fault import save_advice


def _silent(total: int) -> Report:
    return lambda size: None


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The default is for weights in memory: what was begun is removed, and nobody is told."""

    origin: Optional[Mapping[str, Any]] = None
    """Everything about the source that the written bytes depend on, as JSON. With it, a conversion that was stopped goes on."""
    must_go_on: bool = False
    """Refuse to begin anew."""
    start: Callable[[int], Report] = _silent
    """Told the bytes in all, once; what it returns is told of every part that was written."""
    before_publishing: Callable[[], None] = nothing
    """Called once all is written; an error of it keeps the target from appearing. Waits for the source's checksums."""

    identity: str = ""
    """Which weights these are, see Source.identity. An export keeps it."""
    lineage: Optional[Lineage] = None
    """The record that is written beside the weights; None: none."""
    replaces: bool = True
    """An export of other weights that has the target's name goes."""

    def advice(self, error: OSError) -> str:
        """What to do where a write failed, as on a full disk."""
        room = save_advice(error)
        if self.origin is None:
            return f"{f'{room} or ' if room else ''}choose another --output"
        return f"{f'{room} and ' if room else ''}run the same command again, which goes on from there, or choose another --output"

    def folder(self, partial: Path) -> Path:
        """The temporary folder; of this process alone where nobody can go on."""
        return partial if self.origin is not None else partial.with_name(f"{partial.name}-{os.getpid()}")

    def begun(self, folder: Path, files: Sequence[Planned]) -> AbstractContextManager[Journal]:
        """As unfinished."""
        advice = "free space or choose another --output"
        return unfinished(folder, files, origin=self.origin, must_go_on=self.must_go_on, advice=advice)

    def started(self, files: Sequence[Planned]) -> Report:
        """Who is told of progress, having heard how much there is to do."""
        return self.start(sum(file.nbytes for file in files))


IN_MEMORY = Conversion()
"""For weights that are in memory already."""
