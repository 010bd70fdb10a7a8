"""What tells one plain ViT from another, by the names of model.vision.tower. Sizes are in VisionConfig and presets.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mindspeed_vita.choices import ACTIVATIONS, Activation
from mindspeed_vita.config.kinds import Line, OneOf


@dataclass(frozen=True, kw_only=True)
class TowerTraits:
    """Parts of a ViT that others do without. All are pre-norm with learned positions."""

    class_token: bool = True
    """A learned token in front of the patches, with a position of its own; its feature is dropped."""
    patch_bias: bool = True
    """The patch embedding has a bias."""
    first_norm: bool = False
    """A norm before the first layer."""
    final_norm: bool = False
    """A norm after the last layer."""
    layer_scale: bool = False
    """A learned vector scales what each attention and each MLP adds."""
    activation: Activation = "gelu"
    """gelu (exact) | gelu_tanh | quick_gelu (x * sigmoid(1.702 x))."""


_TRAITS = {
    "intern_vit": TowerTraits(layer_scale=True),
    "siglip": TowerTraits(class_token=False, final_norm=True, activation="gelu_tanh"),
    "clip": TowerTraits(patch_bias=False, first_norm=True, activation="quick_gelu"),
}


def tower_names() -> tuple[str, ...]:
    """Names that tower_traits knows."""
    return tuple(_TRAITS)


def tower_traits(name: str) -> TowerTraits:
    """The traits of a tower.

    Raises:
        ValueError: no such tower.
    """
    if name not in _TRAITS:
        raise ValueError(f"model.vision.tower={name!r}; expected one of {', '.join(_TRAITS)}")
    return _TRAITS[name]


def register_traits(name: str, traits: TowerTraits) -> None:
    """Adds a tower; saying the same again changes nothing.

    Raises:
        ValueError: the name is taken by another, or the activation is unknown.
    """
    if _TRAITS.get(name, traits) != traits:
        raise ValueError(f"model.vision.tower {name!r} is registered already, as {_TRAITS[name]}")
    if traits.activation not in ACTIVATIONS:
        raise ValueError(f"tower {name!r} has activation {traits.activation!r}; expected one of {', '.join(ACTIVATIONS)}")
    _TRAITS[name] = traits


TowerName = Annotated[str, Line(), OneOf(names=tower_names)]
