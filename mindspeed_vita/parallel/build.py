"""Builds the model for one rank: attention, exchange and head for the layout, handed to models/."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from mindspeed_vita.config import Recipe
from mindspeed_vita.config.recompute import Recomputation
from mindspeed_vita.models.core_attention import Attend
from mindspeed_vita.models.language import language_transformer_config
from mindspeed_vita.models.lora import add_adapters
from mindspeed_vita.models.vision.attention import AttendTiles
from mindspeed_vita.models.vision.linears import sharded_linears, whole_linears
from mindspeed_vita.models.vita import VitaModel
from mindspeed_vita.ops import tokenwise
from mindspeed_vita.ops.attention import Backend, Heads, choose
from mindspeed_vita.parallel.chunks import ModelChunks
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.parallel.lm_head import LanguageHead
from mindspeed_vita.parallel.ring import ring_attention
from mindspeed_vita.parallel.ring_groups import key_exchange
from mindspeed_vita.parallel.stages import layers_of
from mindspeed_vita.parallel.tile_exchange import GroupRowExchange
from mindspeed_vita.parallel.ulysses import ulysses_attention
from mindspeed_vita.platform import megatron_compat

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def build_model(
    recipe: Recipe, layout: ParallelLayout, device: torch.device | str = "cpu", *, sequence_parallel: bool = True
) -> Any:
    """The part of the model that lives on this rank, with frozen modules frozen, on a device: a VitaModel, or ModelChunks of several.

    The platform must have been chosen and megatron's parallel state initialised.

    Args:
        recipe: architecture, precision and what trains.
        layout: this rank's place.
        device: where the parameters go; "meta", within torch.device("meta"), makes them without data.
        sequence_parallel: as training has it; False for inference, where each tp rank holds all tokens (language_transformer_config).
    """
    model = recipe.model
    on_cpu = torch.device(device).type in ("cpu", "meta")
    torch.manual_seed(recipe.train.seed + 100 * layout.pp_rank)  # every stage draws its own layers
    transformer_config = language_transformer_config(
        model.language,
        init_std=model.init_std,
        dtype=DTYPES[recipe.train.precision],
        tp=layout.tp_size,
        pp=layout.pp_size,
        cp=layout.cp_size,
        init_on_cpu=on_cpu,
        sequence_parallel=sequence_parallel,
        virtual_stages=recipe.parallel.virtual_stages,
    )
    arguments = model_arguments(recipe, layout, torch.device(device), sequence_parallel=sequence_parallel)
    count = recipe.parallel.virtual_stages
    megatron_compat.set_virtual_stages(count)
    if count == 1:
        whole = VitaModel(model, transformer_config, layers=layers_of(recipe, layout.pp_rank), **arguments)
        return with_adapters(whole, recipe, layout).to(device)
    chunks = []
    for number in range(count):
        ends = {
            "pre_process": layout.is_first_stage and number == 0,
            "post_process": layout.is_last_stage and number == count - 1,
            "layers": layers_of(recipe, layout.pp_rank, number),
        }
        with megatron_compat.virtual_stage(number):
            chunk = VitaModel(model, transformer_config, vp_stage=number, **{**arguments, **ends})
        chunks.append(with_adapters(chunk, recipe, layout).to(device))
    return ModelChunks(chunks)


def with_adapters(model: Any, recipe: Recipe, layout: ParallelLayout) -> Any:
    """The model, given the adapters that the recipe asks for, if any; then everything else is frozen."""
    if recipe.lora.rank:
        place = {"tp_rank": layout.tp_rank, "tp_size": layout.tp_size, "rank": dist.get_rank() if dist.is_initialized() else 0}
        add_adapters(model, recipe.lora, recipe.model, seed=recipe.train.seed, **place)
    return model


def model_arguments(
    recipe: Recipe, layout: ParallelLayout, device: torch.device, *, sequence_parallel: bool = True
) -> dict[str, Any]:
    """What VitaModel is given in addition to its two configurations, whoever made them.

    Raises:
        ValueError: no attention backend serves the model's heads on the device.
    """
    model, tensor = recipe.model, recipe.parallel.vision_parallel == "tensor"
    language = model.language
    tokenwise.choose_kernels(recipe.kernels.tokenwise)
    tokenwise.announce(DTYPES[recipe.train.precision], device, width=language.head_dim, num_heads=language.num_heads // layout.tp_size)
    sharded = partial(sharded_linears, tp_rank=layout.tp_rank, tp_size=layout.tp_size)
    return {
        "attend": _attend(recipe, layout, device),
        "attend_tiles": _attend_tiles(recipe, layout, device) if layout.is_first_stage else None,
        "exchange": _row_exchange(layout, tensor),
        "head": LanguageHead(
            mode=model.lm_head,
            chunk=model.lm_head_chunk,
            tp_rank=layout.tp_rank,
            tp_size=layout.tp_size,
            tp_group=layout.tp_group,
            sequence_parallel=sequence_parallel,
        ),
        "pre_process": layout.is_first_stage,
        "post_process": layout.is_last_stage,
        "trainable": recipe.train.modules,
        "tower_linears": sharded if tensor else whole_linears,
        "seed": recipe.train.seed,
        "recompute": Recomputation.of(recipe.train),
    }


def _row_exchange(layout: ParallelLayout, tensor: bool) -> GroupRowExchange:
    if tensor:
        return GroupRowExchange(layout.cp_group, layout.cp_size)
    return GroupRowExchange(layout.tp_cp_group, layout.tile_group_size)


def _attend(recipe: Recipe, layout: ParallelLayout, device: torch.device) -> Attend:
    return attend_over(layout, language_backend(recipe, layout, device), DTYPES[recipe.parallel.ring_gradients])


def language_backend(recipe: Recipe, layout: ParallelLayout, device: torch.device) -> Backend:
    """The attention kernels for the language model's heads on this rank.

    Raises:
        ValueError: no backend serves them on the device.
    """
    language, dtype = recipe.model.language, DTYPES[recipe.train.precision]
    num_heads = language.num_heads // (layout.tp_size * layout.ulysses_size)
    return choose(Heads(num_heads=num_heads, width=language.head_dim, dtype=dtype, device=device), recipe.kernels.attention or None)


def attend_over(layout: ParallelLayout, backend: Backend, ring_gradients: torch.dtype = torch.float32) -> Attend:
    """Attention over the context-parallel ranks of a layout, with the kernels of a backend.

    Args:
        layout: of this rank. Plans must be for its nodes (CPPlan.by_node), as Sharder makes them.
        backend: as ops.attention.choose returns them.
        ring_gradients: in which gradients of keys and values travel on the ring.
    """
    exchange = key_exchange(layout, ring_gradients)
    if layout.ulysses_size == 1:
        return partial(ring_attention, exchange=exchange, rank=layout.ring_rank, backend=backend)
    group, ring_rank = layout.ulysses_group, layout.ring_rank
    return partial(ulysses_attention, group=group, exchange=exchange, ring_rank=ring_rank, backend=backend)


def _attend_tiles(recipe: Recipe, layout: ParallelLayout, device: torch.device) -> AttendTiles:
    vision, dtype = recipe.model.vision, DTYPES[recipe.train.precision]
    sharing = layout.tp_size if recipe.parallel.vision_parallel == "tensor" else 1
    heads = Heads(num_heads=-(-vision.num_heads // sharing), width=vision.head_dim, dtype=dtype, device=device)
    return choose(heads, recipe.kernels.attention or None, what="tiles").tiles
