"""Configuration of Long-VITA for transformers: the decoder's flat keys and a `visual` dict, as in the released checkpoints.

The released decoder is Qwen2. Over another one the class has that decoder's name in its own: LongVITAQwen3Config extends Qwen3Config.
This file travels with exported checkpoints: it imports only transformers and its neighbours.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any, Optional

import transformers
from transformers import PretrainedConfig, Qwen2Config

from .choices import NORMS

# Ids of the released tokenizer; the defaults serve checkpoints whose config.json does not name them.
RELEASED_IMAGE_CONTEXT_ID = 151667
RELEASED_VIDEO_CONTEXT_ID = 151670
RELEASED_PATCH_CONTEXT_ID = 151673

PROJECTORS: dict[str, tuple[str, ...]] = {"mlp": (), "mlp_stride": ("padding",), "mlp_newline": ("newline",)}
"""Kinds of projectors and the parts they have. config/projectors.py has the same table for training; a test compares them."""

if TYPE_CHECKING:
    from typing import Any as Part
else:
    Part = object


class LongVitaVisionConfig(PretrainedConfig):
    """The vision tower. Keys are those of the `visual` dict in config.json; the defaults are the released tower, InternViT-300M."""

    model_type = "intern_vit"

    def __init__(
        self,
        hidden_size: int = 1024,
        intermediate_size: int = 4096,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 16,
        image_size: int = 448,
        patch_size: int = 14,
        num_channels: int = 3,
        layer_norm_eps: float = 1e-6,
        qkv_bias: bool = True,
        hidden_act: str = "gelu",
        initializer_range: float = 0.02,
        initializer_factor: float = 1.0,
        qk_normalization: bool = False,
        norm_type: str = "layer_norm",
        class_token: bool = True,
        patch_bias: bool = True,
        first_norm: bool = False,
        final_norm: bool = False,
        layer_scale: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if norm_type not in NORMS:
            raise ValueError(f"visual.norm_type is {norm_type!r}; this modelling code knows {' and '.join(NORMS)}")
        self.qk_normalization = qk_normalization
        self.norm_type = norm_type
        self.class_token = class_token
        self.patch_bias = patch_bias
        self.first_norm = first_norm
        self.final_norm = final_norm
        self.layer_scale = layer_scale
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_channels = num_channels
        self.layer_norm_eps = layer_norm_eps
        self.qkv_bias = qkv_bias
        self.hidden_act = hidden_act
        self.initializer_range = initializer_range
        self.initializer_factor = initializer_factor


class LongVitaConfigPart(Part):
    """A vision tower and a projector beside a decoder, whose configuration comes after this class among the bases.

    Args:
        visual: the tower's settings, see LongVitaVisionConfig.
        projector: {"hidden_size", "layer_norm_eps", "pixel_shuffle", "kind"}; the released checkpoints have no such key and mean
            {tower width, 1e-5, 2, "mlp"}.
        image_token_id, video_token_id, patch_token_id: ids of <IMG_CONTEXT>, <VID_CONTEXT> and <PATCH_CONTEXT>.
    """

    def __init__(
        self,
        visual: Optional[dict[str, Any]] = None,
        projector: Optional[dict[str, Any]] = None,
        image_token_id: int = RELEASED_IMAGE_CONTEXT_ID,
        video_token_id: int = RELEASED_VIDEO_CONTEXT_ID,
        patch_token_id: int = RELEASED_PATCH_CONTEXT_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.visual = dict(visual or {})
        self.projector = dict(projector or {})
        self.image_token_id = image_token_id
        self.video_token_id = video_token_id
        self.patch_token_id = patch_token_id

    @property
    def vision_config(self) -> LongVitaVisionConfig:
        """The `visual` dict as a config object."""
        keys = ("model_type", "architectures", "auto_map", "torch_dtype", "dtype", "transformers_version", "use_flash_attn")
        return LongVitaVisionConfig(**{key: value for key, value in self.visual.items() if key not in keys})

    @property
    def projector_hidden_size(self) -> int:
        """Width between the projector's two linear layers."""
        return self.projector.get("hidden_size", self.vision_config.hidden_size)

    @property
    def projector_norm_eps(self) -> float:
        """LayerNorm epsilon of the projector: not the tower's."""
        return self.projector.get("layer_norm_eps", 1e-5)

    @property
    def pixel_shuffle(self) -> int:
        """Side of the square of patches merged into one token."""
        return self.projector.get("pixel_shuffle", 2)

    @property
    def projector_pads(self) -> bool:
        """Zeros fill the grid up to a multiple of pixel_shuffle."""
        return "padding" in self._projector_parts

    @property
    def projector_has_newline(self) -> bool:
        """A learned newline follows each row of a tile's tokens."""
        return "newline" in self._projector_parts

    @property
    def _projector_parts(self) -> tuple[str, ...]:
        kind = self.projector.get("kind", "mlp")
        if kind not in PROJECTORS:
            raise ValueError(f"projector.kind is {kind!r}; this modelling code knows {', '.join(PROJECTORS)}")
        return PROJECTORS[kind]

    @property
    def tokens_per_tile(self) -> int:
        """Tokens that one tile becomes."""
        grid = self.vision_config.image_size // self.vision_config.patch_size
        side = -(-grid // self.pixel_shuffle) if self.projector_pads else grid // self.pixel_shuffle
        return side * (side + 1) if self.projector_has_newline else side * side

    @property
    def context_token_ids(self) -> tuple[int, int, int]:
        """Ids whose embeddings are replaced by tile features."""
        return (self.image_token_id, self.video_token_id, self.patch_token_id)

    def to_dict(self) -> dict[str, Any]:
        """Add rope_theta: transformers 5 writes rope_parameters only, and 4.57 would then silently read 10000."""
        output = super().to_dict()
        rope = output.get("rope_parameters")
        if isinstance(rope, dict) and "rope_theta" in rope:
            output["rope_theta"] = rope["rope_theta"]
        elif "rope_theta" in output:
            output["rope_parameters"] = {"rope_type": "default", "rope_theta": output["rope_theta"]}
        return output


class LongVitaConfig(LongVitaConfigPart, Qwen2Config):
    """Long-VITA over Qwen2: the released checkpoints."""

    model_type = "long_vita"
    __init__ = LongVitaConfigPart.__init__  # transformers 5 would write one that knows no tower


@cache
def config_class(base: str) -> Any:
    """The configuration of Long-VITA over a decoder of transformers.

    Args:
        base: how the decoder's class names begin, such as Qwen3.

    Raises:
        ValueError: this transformers has no such decoder.
    """
    if base == "Qwen2":
        return LongVitaConfig
    decoder = getattr(transformers, f"{base}Config", None)
    if decoder is None:
        raise ValueError(f"transformers {transformers.__version__} has no {base}Config; install a version that has this decoder")
    content = {
        "__doc__": f"Long-VITA over {base}.",
        "__module__": __name__,
        "__init__": LongVitaConfigPart.__init__,
        "model_type": f"{LongVitaConfig.model_type}_{decoder.model_type}",
    }
    return type(f"LongVITA{base}Config", (LongVitaConfigPart, decoder), content)


def __getattr__(name: str) -> Any:
    """config.json names the class of its decoder, which is made when it is asked for."""
    match = re.fullmatch(r"LongVITA(\w+)Config", name)
    if match is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return config_class(match[1])


LongVITAConfig = LongVitaConfig
Long_vitaConfig = LongVitaConfig
