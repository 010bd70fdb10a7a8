"""Long-VITA for transformers: vision tower, pixel shuffle and projector, decoder; parameter names of the released weights.

The released decoder is Qwen2. Over another one the classes have that decoder's name in theirs: LongVITAQwen3ForCausalLM.
This file travels with exported checkpoints: it imports only torch, transformers and its neighbours.
Shapes: B batch, T tokens, N tiles, L tokens per tile, P patches, D width.
"""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any, Optional

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import Qwen2ForCausalLM, Qwen2Model, Qwen2PreTrainedModel

from .choices import NORMS  # noqa: F401
from .configuration_long_vita import LongVitaConfig, config_class
from .generation_long_vita import LongVitaGenerationPart, Part
from .tile_positions import CACHE_NAME, cached_length, check_positions, context_indices, one_cache, real_positions
from .vision_long_vita import LongVitaVisionEmbeddings, LongVitaVisionLayer, LongVitaVisionModel

# Without gradients the tower runs on this many tiles at a time, so that thousands of frames do not need thousands of activations.
TILES_PER_CALL = 64


class LongVitaProjector(nn.Module):
    """Pixel shuffle, LayerNorm, two linear layers without biases; where the kind says so, a learned newline after each row."""

    def __init__(self, config: LongVitaConfig) -> None:
        super().__init__()
        self.factor = config.pixel_shuffle
        merged = self.factor**2 * config.vision_config.hidden_size
        self.pre_proj_layernorm = nn.LayerNorm(merged, eps=config.projector_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(merged, config.projector_hidden_size, bias=False),
            nn.GELU(),
            nn.Linear(config.projector_hidden_size, config.hidden_size, bias=False),
        )
        self.pads = config.projector_pads
        self.image_newline: Optional[nn.Parameter]
        self.register_parameter(
            "image_newline", nn.Parameter(torch.zeros(1, config.hidden_size)) if config.projector_has_newline else None
        )

    def forward(self, patches_NPD: torch.Tensor) -> torch.Tensor:
        num_tiles, num_patches, width = patches_NPD.shape
        side, factor = int(num_patches**0.5), self.factor
        patches = patches_NPD.view(num_tiles, side, side, width)
        if self.pads:
            missing = -side % factor
            patches = F.pad(patches, (0, 0, 0, missing, 0, missing))
        rows = patches.shape[1] // factor
        squares = patches.reshape(num_tiles, rows, factor, rows, factor, width).transpose(2, 3)
        tokens_NRRD = self.mlp(self.pre_proj_layernorm(squares.reshape(num_tiles, rows, rows, factor**2 * width)))
        if self.image_newline is not None:
            tokens_NRRD = torch.cat([tokens_NRRD, self.image_newline.expand(num_tiles, rows, 1, -1)], dim=2)
        return tokens_NRRD.flatten(1, 2)


class LongVitaPreTrainedPart(Part):
    """Loading, saving and initial values shared by the models below. The decoder's own class comes after this one among the bases."""

    config: LongVitaConfig
    base_model_prefix = "model"
    _keys_to_ignore_on_load_unexpected = [r"^unused$", r"^model\.unused$"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LongVitaVisionEmbeddings):
            std = self.config.vision_config.initializer_range
            if module.class_embedding is not None:
                nn.init.normal_(module.class_embedding, std=std)
            nn.init.normal_(module.position_embedding, std=std)
        elif isinstance(module, LongVitaProjector) and module.image_newline is not None:
            nn.init.normal_(module.image_newline, std=self.config.initializer_range)
        elif isinstance(module, LongVitaVisionLayer) and module.ls1 is not None and module.ls2 is not None:
            nn.init.constant_(module.ls1, self.config.vision_config.initializer_factor)
            nn.init.constant_(module.ls2, self.config.vision_config.initializer_factor)


class LongVitaModelPart(Part):
    """Tower, projector and decoder without the output layer."""

    input_modalities = ("image", "text", "video")

    def __init__(self, config: LongVitaConfig) -> None:
        super().__init__(config)
        self.vision_model = LongVitaVisionModel(config.vision_config)
        self.vision_projection = LongVitaProjector(config)
        self.post_init()

    def get_image_features(self, images: torch.Tensor) -> torch.Tensor:
        """Tile features.

        Args:
            images: normalised tiles [N, 3, H, W].

        Returns:
            [N, L, hidden_size]
        """
        if torch.is_grad_enabled():
            return self._encode(images)
        return torch.cat([self._encode(part) for part in images.split(TILES_PER_CALL)])

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.vision_projection(self.vision_model(images))

    def _splice(
        self, embeddings_BTD: torch.Tensor, images: torch.Tensor, image_indices: torch.Tensor, offset: int
    ) -> torch.Tensor:
        """Put tile features at their positions; positions count from the start of the sequence, `offset` of it is cached."""
        batch_NL, position_NL = image_indices.to(embeddings_BTD.device).unbind(0)
        if batch_NL.shape[0] != images.shape[0]:
            raise ValueError(f"found {images.shape[0]} tiles in `images` and {batch_NL.shape[0]} in `image_indices`; expected as many")
        real_NL = real_positions(position_NL)
        position_NL = position_NL - offset
        wanted_NL = real_NL & (position_NL >= 0) & (position_NL < embeddings_BTD.shape[1])
        wanted_N = wanted_NL.any(dim=1)
        if not bool(wanted_N.any()):
            return embeddings_BTD
        features_NLD = self.get_image_features(images[wanted_N.to(images.device)]).to(embeddings_BTD)
        if features_NLD.shape[1] != position_NL.shape[1]:
            raise ValueError(f"a tile has {features_NLD.shape[1]} tokens, but `image_indices` has {position_NL.shape[1]} per tile")
        features_NLD = _pooled(features_NLD, real_NL[wanted_N].sum(dim=1))
        chosen = wanted_NL[wanted_N]
        index = (batch_NL[wanted_N][chosen], position_NL[wanted_N][chosen])
        return embeddings_BTD.index_put(index, features_NLD[chosen])

    def forward(
        self,
        input_ids: Optional[torch.LongTensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        position_ids: Optional[torch.LongTensor] = None,
        past_key_values: Any = None,
        inputs_embeds: Optional[torch.Tensor] = None,
        use_cache: Optional[bool] = None,
        images: Optional[torch.Tensor] = None,
        image_indices: Optional[torch.Tensor] = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As the decoder's own model, with tiles.

        Args:
            past_key_values, cache: the two names of the key-value cache; every release of transformers takes either here.
            images: normalised tiles [N, 3, H, W], or None.
            image_indices: [2, N, L]: batch row and position of each tile token. Positions count from the start of the sequence,
                cached tokens included. A tile that is pooled to fewer tokens has -1 behind theirs. Left out, the positions are those of
                the context tokens in `input_ids`; then no tile may be pooled.

        Raises:
            ValueError: two different caches, or tiles and context tokens that do not match.
        """
        cache = one_cache(cache, past_key_values)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if images is not None and images.shape[0]:
            offset = cached_length(cache)
            if image_indices is None:
                if input_ids is None or offset:
                    raise ValueError("`images` without `image_indices` needs `input_ids` and an empty cache; pass image_indices")
                image_indices = context_indices(input_ids, self.config, images.shape[0])
            elif input_ids is not None and offset:
                check_positions(input_ids, image_indices, self.config, offset)
            inputs_embeds = self._splice(inputs_embeds, images, image_indices, offset)
        return super().forward(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **{CACHE_NAME: cache},
            **kwargs,
        )


def _pooled(features_NLD: torch.Tensor, length_N: torch.Tensor) -> torch.Tensor:
    """The features of tiles, those of a tile with fewer positions averaged over squares of its grid, in its first places.

    Args:
        features_NLD: all features of each tile.
        length_N: positions of each tile.

    Raises:
        ValueError: a tile has a number of positions that no pooling gives.
    """
    whole = features_NLD.shape[1]
    pooled, side = features_NLD, math.isqrt(whole)
    for length in set(length_N.tolist()) - {whole}:
        factor = math.isqrt(whole // length)
        if side * side != whole or factor * factor * length != whole or side % factor:
            raise ValueError(f"a tile has {length} positions in `image_indices`; expected {whole}, or {whole} / p^2 for frames pooled by p")
        places = length_N == length
        squares = features_NLD[places].unflatten(1, (side // factor, factor, side // factor, factor)).mean((2, 4)).flatten(1, 2)
        pooled = pooled.index_put((places,), F.pad(squares, (0, 0, 0, whole - length)))
    return pooled


class LongVitaPreTrainedModel(LongVitaPreTrainedPart, Qwen2PreTrainedModel):
    """Over Qwen2, as the classes that follow."""

    config_class = LongVitaConfig
    config: LongVitaConfig
    _no_split_modules = ["Qwen2DecoderLayer", "LongVitaVisionLayer"]


class LongVitaModel(LongVitaModelPart, LongVitaPreTrainedModel, Qwen2Model):
    """Tower, projector and decoder without the output layer."""


class LongVitaForConditionalGeneration(LongVitaGenerationPart, LongVitaPreTrainedModel, Qwen2ForCausalLM):
    """Long-VITA with its output layer."""

    model_class = LongVitaModel
    decoder_class = Qwen2ForCausalLM


class LongVITAForCausalLM(LongVitaForConditionalGeneration):
    """The name that the released checkpoints use."""


@cache
def causal_class(base: str) -> Any:
    """Long-VITA with its output layer, over a decoder of transformers.

    Args:
        base: how the decoder's class names begin, such as Qwen3.

    Raises:
        ValueError: this transformers has no such decoder.
    """
    if base == "Qwen2":
        return LongVITAForCausalLM
    config = config_class(base)
    loading, decoder, causal = (getattr(transformers, f"{base}{end}") for end in ("PreTrainedModel", "Model", "ForCausalLM"))
    shared = {"config_class": config, "_no_split_modules": [f"{base}DecoderLayer", "LongVitaVisionLayer"]}
    pretrained = _made(f"LongVITA{base}PreTrainedModel", (LongVitaPreTrainedPart, loading), **shared)
    model = _made(f"LongVITA{base}Model", (LongVitaModelPart, pretrained, decoder))
    parts = {"model_class": model, "decoder_class": causal}
    return _made(f"LongVITA{base}ForCausalLM", (LongVitaGenerationPart, pretrained, causal), **parts)


def _made(name: str, bases: tuple[Any, ...], **content: Any) -> Any:
    return type(name, bases, {"__doc__": f"See {bases[0].__name__}.", "__module__": __name__, **content})


def __getattr__(name: str) -> Any:
    """config.json names the class of its decoder, and a pickle all classes; they are made when they are asked for."""
    match = re.fullmatch(r"LongVITA(\w+?)(PreTrainedModel|Model|ForCausalLM)", name)
    if match is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    causal = causal_class(match[1])
    return next(made for made in (causal.model_class, *causal.__mro__) if made.__name__ == name)


Long_vitaModel = LongVitaModel
Long_vitaForConditionalGeneration = LongVitaForConditionalGeneration
