"""Projectors by name: builder(config: ProjectorConfig, *, grid, input_size, output_size, transformer_config) makes a module that maps
features [B, grid * grid, vision hidden] to rows [B, tokens per tile, language hidden]; ProjectorConfig.tokens says how many those are."""

from mindspeed_vita.models.projector.mlp import MLPProjector
from mindspeed_vita.models.projector.newline import NewlineProjector
from mindspeed_vita.models.projector.stride import StrideProjector
from mindspeed_vita.models.registry import Registry

projectors = Registry("model.projector.kind", mlp=MLPProjector, mlp_stride=StrideProjector, mlp_newline=NewlineProjector)
