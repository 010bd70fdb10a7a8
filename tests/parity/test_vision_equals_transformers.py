"""The native InternViT tower at the sizes of the 300M preset equals transformers' InternVLVisionModel with the same weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch

from mindspeed_vita.checkpoint.mapping.families import family_rules
from mindspeed_vita.checkpoint.mapping.rules import convert_to_native
from mindspeed_vita.config import ModelConfig, VisionConfig


@pytest.mark.slow
def test_tower_of_300m_equals_transformers_to_1e5() -> None:
    """24 layers, one tile, LayerScale away from 1; 30 s of one core."""
    from megatron.core.transformer.transformer_config import TransformerConfig
    from transformers import InternVLVisionConfig, InternVLVisionModel

    from mindspeed_vita.models.vision import towers

    config = VisionConfig()
    settings = InternVLVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=448, patch_size=14,
        attention_bias=True, use_mean_pooling=True, norm_type="layer_norm", layer_norm_eps=1e-6,
    )  # fmt: skip
    # Built without values: drawing 300M initial ones would take longer than the test.
    with torch.device("meta"):
        reference = InternVLVisionModel(settings).eval()
        settings = TransformerConfig(num_layers=1, hidden_size=64, num_attention_heads=1)
        tower = towers.build(config.tower, config, transformer_config=settings).eval()
    # Mean pooling replaces the final norm by a norm over the pooled vector, which the tower does not have.
    reference.layernorm = torch.nn.Identity()
    state = _weights({name: parameter.shape for name, parameter in reference.named_parameters()})
    native = dict(convert_to_native(state, family_rules("internvl_vision", ModelConfig(vision=config))))
    reference.load_state_dict(state, strict=True, assign=True)
    tower.load_state_dict({name.removeprefix("vision."): tensor for name, tensor in native.items()}, strict=True, assign=True)
    tile = torch.randn(1, 3, 448, 448)
    with torch.no_grad():
        expected = reference(tile).last_hidden_state[:, 1:]
        found = tower(tile)

    scale = expected.abs().max()
    # Measured 0.0 on a CPU; another library for matrix products may sum in another order.
    assert (found - expected).abs().max() <= 1e-5 * scale


def _weights(shapes: Mapping[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Weights cut from one stretch of noise at shifting places; LayerScale and norms away from one."""
    noise = torch.randn(1 << 23)
    weights = {}
    for place, (name, shape) in enumerate(shapes.items()):
        first = 7919 * place % (1 << 22)
        cut = noise[first : first + math.prod(shape)].view(shape)
        if "lambda" in name:
            weights[name] = 0.5 + 0.2 * cut
        elif "layernorm" in name and name.endswith("weight"):
            weights[name] = 1 + 0.1 * cut
        else:
            weights[name] = 0.02 * cut
    return weights
