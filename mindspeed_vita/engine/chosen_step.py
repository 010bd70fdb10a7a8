"""Which step of a checkpoint a command works with: looked up once, by the first process, for all processes.

A run that trains meanwhile writes newer steps. Without one choice, processes could load different steps, and a gate could name a step
that was not measured.
"""

from __future__ import annotations

from pathlib import Path

from mindspeed_vita.checkpoint.native.ranks import gather, on_first_rank
from mindspeed_vita.checkpoint.source import current_folder
from mindspeed_vita.engine.session import start_group, world_size
from mindspeed_vita.platform import get_platform


def choose_step(checkpoint: Path) -> Path:
    """The folder of the step, iteration or export that a checkpoint means now. Collective; under torchrun it makes the process group.

    Args:
        checkpoint: as current_folder.

    Raises:
        ValueError: as current_folder; on every rank.
    """
    if world_size() > 1:
        start_group(get_platform())
    found: list[Path] = []
    on_first_rank(lambda: found.append(current_folder(checkpoint)))
    chosen: list[Path] = gather(found)[0]
    return chosen[0]
