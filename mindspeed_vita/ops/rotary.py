"""Tables for rotary position embedding from explicit positions, with the usual ways to stretch it. tokenwise/ applies them.

Shapes: T tokens, D width of a head, F = D / 2 frequencies.
"""

from __future__ import annotations

import math
from typing import Union

import torch

from mindspeed_vita.config import LanguageConfig, RopeScalingConfig


class RotaryTables:
    """Cosines and sines for a language model's positions.

    fp32 throughout and 1 / base ** x rather than base ** -x, as in transformers: near position 1e6 one last bit of a frequency
    turns the angle by 0.01, so training and inference must round alike.

    Args:
        config: base, width of a head and scaling.
    """

    def __init__(self, config: LanguageConfig) -> None:
        self.scaling = config.rope_scaling
        self.attention_factor = _attention_factor(self.scaling)
        exponents_F = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        self._periods_F = _base(config) ** exponents_F
        self._frequencies_F = _frequencies(self._periods_F, config)
        self._on_device: dict[tuple[bool, torch.device], torch.Tensor] = {}

    def is_long(self, longest: int) -> bool:
        """Whether a sequence of so many tokens has LongRoPE's frequencies for long documents."""
        return self.scaling.kind == "longrope" and longest > self.scaling.original_positions

    def __call__(self, positions_T: torch.Tensor, longest: Union[int, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """cos_TD and sin_TD in fp32, both halves alike.

        Args:
            positions_T: positions of this rank's tokens.
            longest: tokens of the pack's longest document, over all ranks: LongRoPE has other frequencies for long documents. Or, for
                each token, int64[T] on the device: what its own sequence may grow to.
        """
        if isinstance(longest, torch.Tensor):
            if self.scaling.kind != "longrope":
                return self(positions_T, 0)
            is_long_T1 = (longest > self.scaling.original_positions).unsqueeze(1)
            tables = (self(positions_T, self.scaling.original_positions + int(beyond)) for beyond in (True, False))
            (long_cos, long_sin), (cos, sin) = tables
            return torch.where(is_long_T1, long_cos, cos), torch.where(is_long_T1, long_sin, sin)
        long = self.is_long(longest)
        key = (long, positions_T.device)
        if key not in self._on_device:  # copied once: the host waits for every such copy
            self._on_device[key] = self._frequencies(long).to(positions_T.device)
        angles_TF = torch.outer(positions_T.to(torch.float32), self._on_device[key])
        angles_TD = torch.cat([angles_TF, angles_TF], dim=-1)
        return angles_TD.cos() * self.attention_factor, angles_TD.sin() * self.attention_factor

    def _frequencies(self, long: bool) -> torch.Tensor:
        if self.scaling.kind != "longrope":
            return self._frequencies_F
        divisors = self.scaling.long_factor if long else self.scaling.short_factor
        return 1.0 / (torch.tensor(divisors, dtype=torch.float32) * self._periods_F)


def _base(config: LanguageConfig) -> float:
    """NTK-aware: the base grows so that the slowest frequency is slowed by the factor and the fastest stays."""
    scaling, width = config.rope_scaling, config.head_dim
    return config.rope_base * (scaling.factor ** (width / (width - 2)) if scaling.kind == "ntk" else 1.0)


def _frequencies(periods_F: torch.Tensor, config: LanguageConfig) -> torch.Tensor:
    if config.rope_scaling.kind == "linear":
        return 1.0 / periods_F / config.rope_scaling.factor
    if config.rope_scaling.kind == "llama3":
        return _llama3(1.0 / periods_F, config.rope_scaling)
    return _yarn(1.0 / periods_F, config) if config.rope_scaling.kind == "yarn" else 1.0 / periods_F


def _llama3(frequencies_F: torch.Tensor, scaling: RopeScalingConfig) -> torch.Tensor:
    """Llama 3.1: fast frequencies stay, slow ones are divided by the factor, with a ramp linear in the number of turns between."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns_F = scaling.original_positions / (2 * math.pi / frequencies_F)
    kept_F = ((turns_F - low) / (high - low)).clamp(0, 1)
    return (1 - kept_F) * frequencies_F / scaling.factor + kept_F * frequencies_F


def _yarn(frequencies_F: torch.Tensor, config: LanguageConfig) -> torch.Tensor:
    """YaRN (arXiv 2309.00071, section 3.2): fast frequencies stay, slow ones are interpolated, with a linear ramp between."""
    scaling, head_dim, base = config.rope_scaling, config.head_dim, config.rope_base

    def place(turns: float) -> float:
        """Index of the frequency that turns so often within the original positions."""
        return head_dim * math.log(scaling.original_positions / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(place(scaling.beta_fast)), 0), min(math.ceil(place(scaling.beta_slow)), head_dim - 1)
    width = max(high - low, 0.001)  # a ramp of no width would divide by zero
    kept_F = 1 - ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return frequencies_F / scaling.factor * (1 - kept_F) + frequencies_F * kept_F


def _attention_factor(scaling: RopeScalingConfig) -> float:
    if scaling.kind not in ("yarn", "longrope"):
        return 1.0
    if scaling.attention_factor:
        return scaling.attention_factor
    if scaling.factor <= 1:
        return 1.0
    if scaling.kind == "yarn":
        return 0.1 * math.log(scaling.factor) + 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_positions))
