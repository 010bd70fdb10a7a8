"""Random states of this rank, as tensors by name: the platform's generators and megatron.core's tensor-parallel tracker."""

from __future__ import annotations

from typing import Mapping

import torch

from mindspeed_vita.platform import Platform

_TRACKER = "tracker."


def random_state(platform: Platform) -> dict[str, torch.Tensor]:
    """What `set_random_state` restores."""
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    tracked = get_cuda_rng_tracker().get_states()
    return {**platform.rng_state(), **{f"{_TRACKER}{name}": state.cpu() for name, state in tracked.items()}}


def set_random_state(platform: Platform, states: Mapping[str, torch.Tensor]) -> None:
    """Restore states; nothing changes for an empty mapping."""
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    if not states:
        return
    platform.set_rng_state({name: state for name, state in states.items() if not name.startswith(_TRACKER)})
    tracker = get_cuda_rng_tracker()
    saved = {name.removeprefix(_TRACKER): state for name, state in states.items() if name.startswith(_TRACKER)}
    if set(saved) == set(tracker.get_states()):
        tracker.set_states(saved)
