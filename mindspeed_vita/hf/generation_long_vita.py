"""Long-VITA with its output layer: loss, logits and generate(), the same over every decoder.

This file travels with exported checkpoints: it imports only torch and its neighbours.
Shapes: B batch, T tokens, N tiles, L tokens per tile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

import torch
from torch import nn

from .configuration_long_vita import LongVitaConfig
from .tile_positions import CACHE_NAME, cached_length, check_positions, context_indices, first_position, one_cache, uncached

if TYPE_CHECKING:
    from typing import Any as Part
else:
    Part = object  # what a class adds to a decoder of transformers, which comes after it among the bases


class LongVitaGenerationPart(Part):
    """Long-VITA with its output layer."""

    input_modalities = ("image", "text", "video")
    model_class: Any
    """Tower, projector and decoder without the output layer."""
    decoder_class: Any
    """transformers' decoder with its output layer."""

    def __init__(self, config: LongVitaConfig) -> None:
        # Not the decoder's own __init__: it would first build a decoder without a tower.
        super(self.decoder_class, self).__init__(config)
        self.model = self.model_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(self, images: torch.Tensor) -> torch.Tensor:
        """See LongVitaModelPart.get_image_features."""
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
        """As the decoder's, with tiles: see LongVitaModelPart.forward for `images`, `image_indices` and the names of the cache."""
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
