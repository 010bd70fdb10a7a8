"""What tells one projector from another, by the names of model.projector.kind: how many tokens a tile becomes, and of which parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mindspeed_vita.config.kinds import Line, OneOf


@dataclass(frozen=True, kw_only=True)
class ProjectorTraits:
    """A pixel shuffle, a LayerNorm and two linear layers, with or without the parts below.

    A projector that makes another number of tokens has traits of a subclass, which overrides tokens().
    """

    padding: bool = False
    """Zeros fill the grid up at the right and at the bottom, so the shuffle need not divide the grid."""
    newline: bool = False
    """A learned vector after each row of a tile's tokens."""

    def tokens(self, grid: int, shuffle: int) -> int:
        """Tokens of a tile.

        Args:
            grid: patches along one side of the tile.
            shuffle: side of the square of patches that one token is made of.
        """
        side = -(-grid // shuffle) if self.padding else grid // shuffle
        return side * (side + 1) if self.newline else side * side


_TRAITS = {"mlp": ProjectorTraits(), "mlp_stride": ProjectorTraits(padding=True), "mlp_newline": ProjectorTraits(newline=True)}


def projector_names() -> tuple[str, ...]:
    """Names that projector_traits knows."""
    return tuple(_TRAITS)


def projector_traits(kind: str) -> ProjectorTraits:
    """The traits of a projector.

    Raises:
        ValueError: no such projector.
    """
    if kind not in _TRAITS:
        raise ValueError(f"model.projector.kind={kind!r}; expected one of {', '.join(_TRAITS)}")
    return _TRAITS[kind]


def register_projector_traits(kind: str, traits: ProjectorTraits) -> None:
    """Adds a projector; registering the same again changes nothing.

    Raises:
        ValueError: the name is taken by another.
    """
    if _TRAITS.get(kind, traits) != traits:
        raise ValueError(f"model.projector.kind {kind!r} is registered already, as {_TRAITS[kind]}")
    _TRAITS[kind] = traits


ProjectorName = Annotated[str, Line(), OneOf(names=projector_names)]
