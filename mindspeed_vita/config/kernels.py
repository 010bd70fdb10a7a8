"""The section of a recipe that chooses kernels."""

from __future__ import annotations

from dataclasses import dataclass

from mindspeed_vita.choices import TokenwiseChoice
from mindspeed_vita.config.kinds import Section, Text


@dataclass(frozen=True, kw_only=True)
class KernelsConfig(Section):
    """Which kernels serve. A run says at its start which ones do; one that is named here and cannot serve ends the run with its reason."""

    attention: Text = ""
    """Attention backend: flash_attn_3, flash_attn_4, flash_attn or torch_cuda (GPUs), npu, torch_native (CPUs), reference (any device),
    or a plugin's. Empty: the first one for the device that does not refuse."""
    tokenwise: TokenwiseChoice = "auto"
    """Norm, gate, rotation and row losses: auto (fused kernels where there are any: torch_npu's on NPUs, Liger's on GPUs where
    liger-kernel is installed) | plain (torch's own operators)."""
