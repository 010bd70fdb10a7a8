"""Where the tile tokens of a sequence are, and how much of the sequence is in the key-value cache.

This file travels with exported checkpoints. Shapes: B batch, T tokens, N tiles, L tokens per tile.
"""

from __future__ import annotations

import inspect
from typing import Any, Optional

import torch
from transformers import Qwen2Model

from .configuration_long_vita import LongVitaConfig

# transformers 5.24 renamed the keyword for the key-value cache. Our methods take both names and pass on the one that this release knows.
CACHE_NAME = "cache" if "cache" in inspect.signature(Qwen2Model.forward).parameters else "past_key_values"


def one_cache(cache: Any, past_key_values: Any) -> Any:
    """The key-value cache, given under either name.

    Raises:
        ValueError: both names are given, with different caches.
    """
    if cache is not None and past_key_values is not None and cache is not past_key_values:
        raise ValueError("found two different caches in `cache` and `past_key_values`, which mean the same; pass one of them")
    return past_key_values if cache is None else cache


def cached_length(cache: Any) -> int:
    """Tokens in the cache. A static cache counts them on the device, so this waits for the device."""
    return 0 if cache is None else int(cache.get_seq_length())


def first_position(input_ids: torch.Tensor, step_ids: Optional[torch.Tensor], cache: Any) -> int:
    """Position in the sequence of a generation step's first token, without waiting for the device in any step after the prompt.

    Args:
        input_ids: ids that the step was cut from [B, T].
        step_ids: ids of the step itself, or None where it has embeddings.
        cache: the key-value cache, or None.

    Returns:
        The position, or less where the cache is static and `input_ids` holds the new tokens of a conversation only.
    """
    if step_ids is not None and step_ids.shape[1] < input_ids.shape[1] and getattr(cache, "is_compileable", False):
        return input_ids.shape[1] - step_ids.shape[1]
    return cached_length(cache)


def uncached(input_ids: torch.Tensor, attention_mask: Optional[torch.Tensor], cached: int) -> torch.Tensor:
    """The ids [B, T] that are not in the cache: `input_ids` are those of the whole sequence, or the new ones where the mask is longer.

    Raises:
        ValueError: no mask is longer, and the ids are too few to be those of the whole sequence.
    """
    if attention_mask is not None and attention_mask.dim() == 2 and attention_mask.shape[1] > input_ids.shape[1]:
        return input_ids
    if 0 < cached >= input_ids.shape[1]:
        raise ValueError(
            f"found {input_ids.shape[1]} ids and {cached} cached tokens; pass the ids of the whole sequence, or the new ids with an "
            "attention_mask of the whole"
        )
    return input_ids[:, cached:]


def is_context(input_ids: torch.Tensor, config: LongVitaConfig) -> torch.Tensor:
    """Which ids are context tokens, whose embeddings are replaced by tile features: a mask of the same shape."""
    return torch.isin(input_ids, torch.tensor(config.context_token_ids, device=input_ids.device))


def real_positions(position_NL: torch.Tensor) -> torch.Tensor:
    """Which positions belong to a token: a mask [N, L]. Behind a pooled tile's tokens stands -1, to which callers add cached tokens."""
    return position_NL >= position_NL[:, :1]


def context_indices(input_ids: torch.Tensor, config: LongVitaConfig, num_tiles: int) -> torch.Tensor:
    """Positions of tile tokens, read off the context tokens in row order.

    Returns:
        [2, N, L], see LongVitaModelPart.forward.

    Raises:
        ValueError: the number of context tokens does not fit `num_tiles`.
    """
    found = is_context(input_ids, config).nonzero()
    if found.shape[0] != num_tiles * config.tokens_per_tile:
        raise ValueError(
            f"found {found.shape[0]} context tokens for {num_tiles} tiles of {config.tokens_per_tile} tokens; "
            "pass the ids and images of one processor call, and its image_indices where frames are pooled"
        )
    return found.t().reshape(2, num_tiles, config.tokens_per_tile)


def check_positions(new_ids: torch.Tensor, image_indices: Optional[torch.Tensor], config: LongVitaConfig, cached: int) -> None:
    """Refuse tiles that would miss their context tokens, such as positions counted from the start of the new tokens.

    Args:
        new_ids: the ids after the cached ones [B, T].
        image_indices: [2, N, L], or None where there are no tiles.
        cached: number of tokens in the cache.

    Raises:
        ValueError: a tile token among the new ids is not on a context token, or the new ids have whole tiles and no positions are given.
    """
    context_BT = is_context(new_ids, config)
    found, given, hit = int(context_BT.sum()), 0, 0
    if image_indices is not None:
        row_NL, position_NL = image_indices.to(new_ids.device).unbind(0)
        real_NL = real_positions(position_NL)
        position_NL = position_NL - cached
        inside_NL = real_NL & (position_NL >= 0) & (position_NL < new_ids.shape[1])
        given, hit = int(inside_NL.sum()), int(context_BT[row_NL[inside_NL], position_NL[inside_NL]].sum())
    # Prompt lookup may propose some context tokens after the prompt, so more of them than positions is no error.
    if hit == given and (given or found < config.tokens_per_tile):
        return
    message = f"found {found} context tokens in the new ids, and {given} positions of `image_indices` there, {hit} on context tokens"
    if cached:
        raise ValueError(
            f"{message}; {cached} tokens are cached, and positions count from the start of the sequence: "
            f"where the processor saw the new tokens alone, add {cached} to image_indices[1]"
        )
    raise ValueError(f"{message}; pass the ids, images and image_indices of one processor call")
