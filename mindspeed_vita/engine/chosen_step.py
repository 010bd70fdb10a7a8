"""Which step of a checkpoint a command works with: looked up once, by the first process, for all processes.

A run that trains meanwhile writes newer steps. Without one choice, processes could load different steps, and a gate could name a step
that was not measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Union

from mindspeed_vita.checkpoint.fetched import local_copy, pinned
from mindspeed_vita.checkpoint.native.ranks import gather, on_first_rank
from mindspeed_vita.checkpoint.source import current_folder
from mindspeed_vita.engine.session import start_group, world_size
from mindspeed_vita.files.stores import is_address
from mindspeed_vita.platform import get_platform


def choose_step(checkpoint: Union[str, Path]) -> Path:
    """The folder of the step, iteration or export that a checkpoint means now. Collective; under torchrun it makes the process group.

    Args:
        checkpoint: as current_folder; or, as a text, an address in an object store, which every host then fetches into its cache.

    Raises:
        ValueError: as current_folder and local_copy; on every rank.
    """
    if world_size() > 1:
        start_group(get_platform())
    stored = is_address(checkpoint)
    found: list[Union[str, Path]] = []
    on_first_rank(lambda: found.append(pinned(str(checkpoint)) if stored else current_folder(Path(checkpoint))))
    chosen: list[Union[str, Path]] = gather(found)[0]
    return local_copy(str(chosen[0])) if stored else Path(chosen[0])
