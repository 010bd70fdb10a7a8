"""Projectors by name: builder(config: ProjectorConfig, *, grid, input_size, output_size, transformer_config) makes a module that maps
features [B, grid * grid, vision hidden] to rows [B, tokens per tile, language hidden]. config/projectors.py says how many those are."""

from mindspeed_vita.config import ProjectorTraits, register_projector_traits
from mindspeed_vita.models.projector.mlp import MLPProjector
from mindspeed_vita.models.projector.newline import NewlineProjector
from mindspeed_vita.models.projector.stride import StrideProjector
from mindspeed_vita.models.registry import Builder, Registry

projectors = Registry("model.projector.kind", mlp=MLPProjector, mlp_stride=StrideProjector, mlp_newline=NewlineProjector)


def register_projector(kind: str, traits: ProjectorTraits, builder: Builder) -> None:
    """Adds a projector to those that a recipe may name. It trains and saves natively; it has no Hugging Face layout.

    Args:
        kind: for model.projector.kind.
        traits: how many tokens a tile becomes.
        builder: makes the module, as described above.

    Raises:
        ValueError: the name is taken by another.
    """
    register_projector_traits(kind, traits)
    if not projectors.knows(kind, builder):
        projectors.register(kind, builder)
