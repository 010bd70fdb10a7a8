"""A checkpoint that is ready to compute a probe; who computes it is in hf_sides.py and native_side.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from mindspeed_vita.checks.logits.lockstep import Tell
from mindspeed_vita.checks.logits.probe import Probe
from mindspeed_vita.files.shard_stream import Report


@dataclass(frozen=True, kw_only=True)
class Side:
    """A checkpoint that is ready to compute."""

    computed_by: str
    """For people."""
    avoid: tuple[int, ...]
    """Token ids that mean a picture."""
    run: Callable[[Mapping[str, torch.dtype], Report, Probe, Tell], None]
    """Computes a probe: types by native name, who hears of progress, the probe, and who is told the points."""
