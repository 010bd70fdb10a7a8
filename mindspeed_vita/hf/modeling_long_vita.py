"""Long-VITA for transformers: vision tower, pixel shuffle and projector, Qwen2 decoder; parameter names of the released weights.

This file travels with exported checkpoints: it imports only torch, transformers and its neighbours.
Shapes: B batch, T tokens, N tiles, L tokens per tile, P patches, D width.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen2ForCausalLM, Qwen2Model
from transformers.models.qwen2.modeling_qwen2 import Qwen2PreTrainedModel

from .configuration_long_vita import LongVitaConfig
from .tile_positions import CACHE_NAME, cached_length, check_positions, context_indices, first_position, one_cache, uncached
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
        self.pads = config.projector_kind == "mlp_stride"
        self.image_newline: Optional[nn.Parameter]
        self.register_parameter(
            "image_newline", nn.Parameter(torch.zeros(1, config.hidden_size)) if config.projector_kind == "mlp_newline" else None
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


class LongVitaPreTrainedModel(Qwen2PreTrainedModel):
    """Loading, saving and initial values shared by the models below."""

    config_class = LongVitaConfig
    config: LongVitaConfig
    base_model_prefix = "model"
    _no_split_modules = ["Qwen2DecoderLayer", "LongVitaVisionLayer"]
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


class LongVitaModel(LongVitaPreTrainedModel, Qwen2Model):
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
        position_NL = position_NL - offset
        wanted_NL = (position_NL >= 0) & (position_NL < embeddings_BTD.shape[1])
        wanted_N = wanted_NL.any(dim=1)
        if not bool(wanted_N.any()):
            return embeddings_BTD
        features_NLD = self.get_image_features(images[wanted_N.to(images.device)]).to(embeddings_BTD)
        if features_NLD.shape[1] != position_NL.shape[1]:
            raise ValueError(f"a tile has {features_NLD.shape[1]} tokens, but `image_indices` has {position_NL.shape[1]} per tile")
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
        """As Qwen2Model, with tiles.

        Args:
            past_key_values, cache: the two names of the key-value cache; every release of transformers takes either here.
            images: normalised tiles [N, 3, H, W], or None.
            image_indices: [2, N, L]: batch row and position of each tile token. Positions count from the start of the sequence,
                cached tokens included. Left out, the positions are those of the context tokens in `input_ids`.

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


class LongVitaForConditionalGeneration(LongVitaPreTrainedModel, Qwen2ForCausalLM):
    """Long-VITA with its output layer."""

    input_modalities = ("image", "text", "video")

    def __init__(self, config: LongVitaConfig) -> None:
        # Not Qwen2ForCausalLM.__init__: it would first build a decoder of its own.
        super(Qwen2ForCausalLM, self).__init__(config)
        self.model = LongVitaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(self, images: torch.Tensor) -> torch.Tensor:
        """See LongVitaModel.get_image_features."""
        return self.model.get_image_features(images)

    def forward(
        self,
        input_ids: Optional[torch.LongTensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        position_ids: Optional[torch.LongTensor] = None,
        past_key_values: Any = None,
        inputs_embeds: Optional[torch.Tensor] = None,
        labels: Optional[torch.LongTensor] = None,
        use_cache: Optional[bool] = None,
        logits_to_keep: int | torch.Tensor = 0,
        images: Optional[torch.Tensor] = None,
        image_indices: Optional[torch.Tensor] = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As Qwen2ForCausalLM, with tiles: see LongVitaModel.forward for `images`, `image_indices` and the names of the cache."""
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            images=images,
            image_indices=image_indices,
            **{CACHE_NAME: one_cache(cache, past_key_values)},
            **kwargs,
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: Optional[torch.Tensor] = None,
        images: Optional[torch.Tensor] = None,
        image_indices: Optional[torch.Tensor] = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers' generate. `inputs` and `input_ids` mean the same; empty `images` mean none.

        With a filled cache, `inputs` are the ids of the whole sequence, or the new ones next to an attention mask of the whole.

        Raises:
            ValueError: tiles and context tokens do not match, or media that only the processor takes.
        """
        if inputs is None:
            inputs = kwargs.pop("input_ids", None)
        for name in ("audios", "audio", "videos", "padding_side"):
            value = kwargs.pop(name, None)
            if name != "padding_side" and value is not None and len(value):
                raise ValueError(f"generate() got {name}; give media to the processor and its output to generate()")
        if images is None or len(images) == 0:
            images, image_indices = None, None
        cache = one_cache(kwargs.pop("cache", None), kwargs.pop("past_key_values", None))
        if cache is not None:
            kwargs[CACHE_NAME] = cache
        if inputs is not None:
            cached = cached_length(cache)
            new_ids = uncached(inputs, kwargs.get("attention_mask"), cached)
            image_indices = self._positions(inputs, new_ids, images, image_indices, cached)
            if cached and new_ids is not inputs:
                self._refuse_chunks(**kwargs)
                kwargs["prompt_cached"] = cached
        elif images is not None and image_indices is None:
            raise ValueError("`images` without `image_indices` needs `input_ids`; pass the processor's image_indices")
        if image_indices is not None and "tiles_end" not in kwargs:
            # Read off the device once, so that no step has to wait for it.
            kwargs["tiles_end"] = int(image_indices[1].max()) + 1
        return super().generate(inputs, images=images, image_indices=image_indices, **kwargs)

    def _refuse_chunks(self, prefill_chunk_size: Optional[int] = None, generation_config: Any = None, **_: Any) -> None:
        """Up to transformers 5.23, prefill in chunks starts at position 0 whatever is cached, and gives wrong answers."""
        chunk = prefill_chunk_size or getattr(generation_config or self.generation_config, "prefill_chunk_size", None)
        if chunk and CACHE_NAME == "past_key_values":
            raise ValueError(
                f"prefill_chunk_size={chunk} with a filled cache needs transformers 5.24 or newer; leave out one of the two"
            )

    def _positions(
        self,
        inputs: torch.Tensor,
        new_ids: torch.Tensor,
        images: Optional[torch.Tensor],
        image_indices: Optional[torch.Tensor],
        cached: int,
    ) -> Optional[torch.Tensor]:
        """The positions [2, N, L] of the prompt's tiles, read off the ids where they are not given, and checked where that is unsafe."""
        if images is not None and image_indices is None:
            image_indices = context_indices(inputs, self.config, images.shape[0])
            if new_ids is inputs:
                image_indices = image_indices + torch.tensor([0, cached], device=inputs.device)[:, None, None]
        elif images is None or cached:
            check_positions(new_ids, image_indices, self.config, cached)
        return image_indices

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        past_key_values: Any = None,
        attention_mask: Optional[torch.Tensor] = None,
        inputs_embeds: Optional[torch.Tensor] = None,
        images: Optional[torch.Tensor] = None,
        image_indices: Optional[torch.Tensor] = None,
        tiles_end: Optional[int] = None,
        prompt_cached: int = 0,
        cache: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Keep the tiles until the last of them is in the cache. `**kwargs` must be named: generate() inspects it.

        Args:
            tiles_end: position after the last tile token, from generate(). It lets a step be judged without reading from the device.
            prompt_cached: how many tokens of the prompt were in the cache when generate() began.
        """
        cache = one_cache(cache, past_key_values)
        if prompt_cached and kwargs.get("is_first_iteration") and kwargs.get("next_sequence_length", 0) is None:
            # Assisted decoding and prompt lookup (from transformers 5.4 on) would feed the cached tokens once more.
            kwargs["next_sequence_length"] = input_ids.shape[1] - prompt_cached
        # A release that knows the other name alone would hand an unknown keyword on to forward().
        named = {} if cache is None else {CACHE_NAME: cache}
        prepared = super().prepare_inputs_for_generation(
            input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **named, **kwargs
        )
        if images is not None and image_indices is not None:
            if tiles_end is None:
                tiles_end = int(image_indices[1].max()) + 1
            if first_position(input_ids, prepared.get("input_ids"), cache) < tiles_end:
                prepared["images"], prepared["image_indices"] = images, image_indices
        return prepared

    @staticmethod
    def _expand_inputs_for_generation(
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Optional[torch.Tensor] = None,
        images: Optional[torch.Tensor] = None,
        image_indices: Optional[torch.Tensor] = None,
        **model_kwargs: Any,
    ) -> tuple[Optional[torch.Tensor], dict[str, Any]]:
        """Repeat the batch for beams and several answers; tiles are not one per batch row, so their batch index is rewritten."""
        if expand_size > 1:
            input_ids = None if input_ids is None else input_ids.repeat_interleave(expand_size, dim=0)
            for name, value in model_kwargs.items():
                if isinstance(value, torch.Tensor):
                    model_kwargs[name] = value.repeat_interleave(expand_size, dim=0)
            if images is not None and image_indices is not None:
                copies = torch.arange(expand_size, device=image_indices.device).repeat(images.shape[0])[:, None]
                batch_NL, position_NL = image_indices.repeat_interleave(expand_size, dim=1).unbind(0)
                image_indices = torch.stack([batch_NL * expand_size + copies, position_NL])
                images = images.repeat_interleave(expand_size, dim=0)
        return input_ids, {**model_kwargs, "images": images, "image_indices": image_indices}


class LongVITAForCausalLM(LongVitaForConditionalGeneration):
    """The name that the released checkpoints use."""


Long_vitaModel = LongVitaModel
Long_vitaForConditionalGeneration = LongVitaForConditionalGeneration
