"""The exported model, trained on packs: attention over a plan, tiles shared out over context parallelism, loss from hidden states.

The parameters keep the names of the export. Every collective of a sharded optimizer hangs on calls of modules, so each rank calls
the same modules equally often: a rank without tiles runs a dummy tile.
Shapes: T tokens of this context-parallel rank, Q supervised ones, H hidden, V vocabulary, N tiles, R vision rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mindspeed_vita.config import Recipe, language_traits
from mindspeed_vita.hf.modeling_long_vita import causal_class
from mindspeed_vita.integration.hf_trainer import fully_sharded
from mindspeed_vita.integration.hf_trainer.settings import FSDP2
from mindspeed_vita.models.core_attention import Attend
from mindspeed_vita.models.inputs import ModelInputs
from mindspeed_vita.models.splice import splice
from mindspeed_vita.models.vita import TILES_AT_ONCE, RowExchange
from mindspeed_vita.ops.cross_entropy import chunked_cross_entropy
from mindspeed_vita.ops.normalize import normalize_tiles
from mindspeed_vita.parallel.build import DTYPES, attend_over, language_backend
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.parallel.tile_exchange import GroupRowExchange
from mindspeed_vita.platform import Platform

ATTENTION = "vita_packed"
"""Name of our attention in transformers' registry. It has no mask function there, so transformers makes no mask."""
MODULES = {"vision": "vision_model", "projector": "vision_projection"}
"""Attribute of the inner model by our name of a module. Everything else is the language model."""
IGNORE = -100


@dataclass(frozen=True, kw_only=True)
class PackedSettings:
    """What the forward pass over packs needs beyond the weights."""

    attend: Attend
    """Attention of the decoder over the ranks that share a pack."""
    exchange: RowExchange
    """Exchange of vision rows between them."""
    normalization: str
    """Of the tiles' pixels."""
    trainable: frozenset[str]
    """Modules that train."""
    chunk: int
    """Rows of logits that exist at a time."""
    dtype: torch.dtype
    """Of the products with the output layer's weight."""
    sharded: bool
    """A module's weights are gathered when it is called (ZeRO-3, FSDP2), so all ranks must call it equally often."""


def build_packed_model(folder: Path, recipe: Recipe, layout: ParallelLayout, platform: Platform, *, sharing: str) -> Any:
    """The model of an export, ready for packs. This is the one place that builds it.

    What does not train is frozen: all of it, where adapters train.

    Args:
        folder: an export in our Hugging Face layout.
        recipe: the run.
        layout: this rank's place.
        platform: its device.
        sharing: how the ranks share weights and optimizer; see settings.sharing_of.

    Raises:
        ValueError: no attention backend serves the heads.
    """
    train = recipe.train
    # DeepSpeed keeps fp32 copies of bf16 weights; the others train fp32 weights and compute in the recipe's precision
    dtype = DTYPES[train.precision] if sharing.startswith("zero") else torch.float32
    settings = PackedSettings(
        attend=attend_over(layout, language_backend(recipe, layout, platform.device), DTYPES[recipe.parallel.ring_gradients]),
        exchange=GroupRowExchange(layout.tp_cp_group, layout.tile_group_size),
        normalization=recipe.model.vision.normalization,
        trainable=frozenset(recipe.lora.parts if recipe.lora.rank else train.modules),
        chunk=recipe.model.lm_head_chunk,
        dtype=DTYPES[train.precision],
        sharded=sharing.startswith(("zero3", FSDP2)),
    )
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, packed_attention)
    model = packed_class(language_traits(recipe.model.language.family).hf_base).from_pretrained(
        folder, dtype=dtype, attn_implementation=ATTENTION
    )
    model.packed = settings
    model.lm_head.__class__ = LossHead
    model.config.use_cache = False
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not recipe.lora.rank and module_of(name) in settings.trainable)
    if train.recompute == "full":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if sharing == FSDP2:
        fully_sharded.share(model, device=platform.device, half=train.precision == "bf16")
    return model


def module_of(name: str) -> str:
    """vision, projector or language: the module that a parameter of the export belongs to."""
    return next((ours for ours, theirs in MODULES.items() if name.startswith(f"model.{theirs}.")), "language")


def packed_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **arguments: Any
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface over a plan: [1, heads, T, width] in, [1, T, heads, width] out."""
    assert attention_mask is None, "the plan says which tokens see each other"
    parts = [x.squeeze(0).transpose(0, 1).contiguous() for x in (query, key, value)]
    # rotary positions are applied in fp32 under autocast
    q_TND, k_TGD, v_TGD = (x.to(value.dtype) for x in parts)
    return arguments["attend"](q_TND, k_TGD, v_TGD, arguments["cp_plan"], scale=arguments["scaling"]).unsqueeze(0), None


class LossHead(nn.Linear):
    """The output layer, which gives losses in place of logits. A module, because ZeRO-3 gathers its weight when it is called."""

    def forward(  # type: ignore[override]
        self, hidden_QH: torch.Tensor, labels_Q: torch.Tensor, chunk: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Cross-entropy of each row: float32[Q], from products in dtype. No more than chunk rows of logits exist at a time."""
        return chunked_cross_entropy(hidden_QH.to(dtype), self.weight.to(dtype), labels_Q, chunk=chunk)


class PackedPart:
    """What is added to the exported class: a forward pass over one pack."""

    packed: PackedSettings
    model: Any
    lm_head: Any

    def forward(self, pack: ModelInputs) -> torch.Tensor:
        """The loss of each token times its weight: float32[T], 0 where it is not supervised. Only supervised rows get logits."""
        hidden_TH = self.model(
            inputs_embeds=self._embed(pack),
            position_ids=pack.positions_T.unsqueeze(0),
            use_cache=False,
            attend=self.packed.attend,
            cp_plan=pack.cp_plan,
        ).last_hidden_state.squeeze(0)
        # one row at least, so that every rank calls the output layer
        rows_Q = pack.supervised_Q if len(pack.supervised_Q) else torch.zeros_like(pack.labels_T[:1])
        labels_Q = pack.labels_T[rows_Q]
        losses_Q = self.lm_head(hidden_TH[rows_Q], labels_Q.clamp_min(0), self.packed.chunk, self.packed.dtype)
        losses_Q = losses_Q * (labels_Q != IGNORE) * pack.weights_T[rows_Q]
        return torch.zeros_like(pack.weights_T).index_add(0, rows_Q, losses_Q)

    def _embed(self, pack: ModelInputs) -> torch.Tensor:
        """Embeddings of this rank's tokens with vision rows in their places: [1, T, H]."""
        embeddings_1TH = self.model.embed_tokens(pack.tokens_T.unsqueeze(0))
        trains = torch.is_grad_enabled() and bool(self.packed.trainable & {"vision", "projector"})
        if not pack.num_tiles and not trains and not self.packed.sharded:
            return embeddings_1TH
        tiles = pack.tiles_NCHW
        if not len(tiles):
            config = self.model.config.vision_config
            tiles = torch.zeros(1, 3, config.image_size, config.image_size, dtype=torch.uint8, device=embeddings_1TH.device)
        rows_RH = self._rows(tiles).to(embeddings_1TH.dtype)
        dummy = 0 * rows_RH.sum() if not len(pack.tiles_NCHW) else 0
        if pack.route is not None:
            own_RH = rows_RH if len(pack.tiles_NCHW) else rows_RH[:0]
            received_RH = self.packed.exchange(own_RH, pack.route)
            embeddings_1TH = splice(embeddings_1TH.transpose(0, 1), received_RH, pack.route.targets).transpose(0, 1)
        return embeddings_1TH + dummy

    def _rows(self, tiles_NCHW: torch.Tensor) -> torch.Tensor:
        """Vision rows of this rank's tiles [R, H]."""
        inner, settings = self.model, self.packed
        dtype = inner.vision_projection.mlp[0].weight.dtype

        def features(part_NCHW: torch.Tensor) -> torch.Tensor:
            return inner.vision_model(normalize_tiles(part_NCHW, settings.normalization).to(dtype))

        if "vision" in settings.trainable and torch.is_grad_enabled():
            return inner.vision_projection(features(tiles_NCHW)).flatten(0, 1)
        with torch.no_grad():
            parts = [features(part) for part in tiles_NCHW.split(TILES_AT_ONCE)]
            for _ in range(_most(len(parts), tiles_NCHW.device) - len(parts) if settings.sharded else 0):
                features(tiles_NCHW[:1])
        return inner.vision_projection(torch.cat(parts)).flatten(0, 1)


def _most(count: int, device: torch.device) -> int:
    """The largest count of any rank. Collective over the world."""
    largest = torch.tensor(count, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


@cache
def packed_class(base: str) -> Any:
    """The exported class over a decoder of transformers, with a forward pass over packs.

    Args:
        base: how the decoder's class names begin, such as Qwen2.
    """
    exported = causal_class(base)
    return type(exported.__name__, (PackedPart, exported), {"__doc__": PackedPart.__doc__, "__module__": __name__})
