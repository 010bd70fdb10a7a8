"""What the patch ledger puts over Megatron's functions. Each is an entry of patches/manifest.toml; importing this file applies none."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Callable, Optional, Sequence

from mindspeed_vita.config import TrainConfig
from mindspeed_vita.parallel.parameter_groups import parameter_groups


@dataclass(frozen=True, kw_only=True)
class ParameterSettings:
    """What a model says about its optimizer, as its attribute `parameter_settings`."""

    train: TrainConfig
    """Learning rates, their multipliers and the tower's layer decay."""
    num_vision_layers: int
    """Layers of the tower."""


def parameter_groups_wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps megatron.core.optimizer._get_param_groups: a model with `parameter_settings` gets its own groups, any other one upstream's.

    Ours have as many learning rates as the settings ask for, and are the same on every rank, where upstream knows one multiplier
    and leaves out groups that are empty on a rank.
    """

    @functools.wraps(original)
    def wrapper(model_chunks: Sequence[Any], *arguments: Any, **named: Any) -> Any:
        found = [_settings(chunk) for chunk in model_chunks]
        if all(settings is None for _, settings in found):
            return original(model_chunks, *arguments, **named)
        settings = found[0][1]
        assert settings is not None
        return parameter_groups([model for model, _ in found], settings.train, settings.num_vision_layers)

    return wrapper


def _settings(chunk: Any) -> tuple[Any, Optional[ParameterSettings]]:
    """The model below DDP and mixed precision, and its settings if it has any."""
    model = chunk
    while not hasattr(model, "parameter_settings") and hasattr(model, "module"):
        model = model.module
    return model, getattr(model, "parameter_settings", None)
