"""Which step of a checkpoint a command works with: looked up once, by the first process, for all processes.

A run that trains meanwhile writes newer steps. Without one choice, processes could load different steps, and a gate could name a step
that was not measured.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Optional, Union

from mindspeed_vita.addresses import is_address
from mindspeed_vita.checkpoint.fetched import local_copy, pinned
from mindspeed_vita.checkpoint.native.ranks import gather, gather_patiently, on_first_rank
from mindspeed_vita.checkpoint.source import current_folder
from mindspeed_vita.engine.session import start_group, world_size
from mindspeed_vita.platform import get_platform


def choose_step(checkpoint: Union[str, Path]) -> Path:
    """The folder of the step, iteration or export that a checkpoint means now. Collective; under torchrun it makes the process group.

    Args:
        checkpoint: as current_folder; or, as a text, an address in an object store, which every host then fetches into its cache.

    Raises:
        ValueError: as current_folder and local_copy, or a disk is full on one host; on every rank.
    """
    if world_size() > 1:
        start_group(get_platform())
    stored = is_address(checkpoint)
    found: list[Union[str, Path]] = []
    on_first_rank(lambda: found.append(pinned(str(checkpoint)) if stored else current_folder(Path(checkpoint))))
    chosen: list[Union[str, Path]] = gather(found)[0]
    return _on_every_host(str(chosen[0])) if stored else Path(chosen[0])


def _on_every_host(address: str) -> Path:
    """local_copy; what one rank meets is every rank's error. Collective."""
    error: Optional[Exception] = None
    folder = Path()
    try:
        folder = local_copy(address)
    except (ValueError, OSError) as caught:
        error = caught
    reasons = gather_patiently("" if error is None else f"{platform.node()}: {error}")
    if error is not None and len(reasons) == 1:
        raise error
    failed = next((reason for reason in reasons if reason), "")
    if failed:
        raise ValueError(f"{address} cannot be fetched on {failed}") from error
    return folder
