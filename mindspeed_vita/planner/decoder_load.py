"""The load of a decoder from its shapes alone, without a trace: prefill of a prompt, and training steps that others published.

It counts what the formulas of a layer say. A trace counts what this project's code does; use that wherever there is a recipe.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Optional

from mindspeed_vita.planner.load import Kernels, Load, Transfer

_BF16, _FP32 = 2, 4
_PRODUCTS = 4
"""Matrix products of a layer; see traced_load.py."""
_PASSES = 2
_PER_TILE = 728e9
"""FLOPs of InternViT-300M and the projector for a tile of 448 x 448."""


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Sizes of a decoder with gated feed-forward layers."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int

    @property
    def layer_weights(self) -> int:
        """Parameters of the matrix products of a layer."""
        width = self.hidden // self.heads
        return self.hidden * (2 * self.hidden + 2 * self.kv_heads * width) + 3 * self.hidden * self.ffn

    @property
    def weights(self) -> int:
        """Parameters of all layers, the embedding and the head."""
        return self.layers * self.layer_weights + 2 * self.vocabulary * self.hidden


@dataclass(frozen=True, kw_only=True)
class DecoderLayout:
    """How a step is cut."""

    world: int
    tp: int = 1
    pp: int = 1
    chunks: int = 1
    """Model chunks of each pipeline stage (interleaved schedule)."""
    cp: int = 1
    ulysses: int = 1
    tensor_overlaps: bool = False
    """See Load.tensor_overlaps."""
    distributed_optimizer: bool = True

    @property
    def dp(self) -> int:
        """Data-parallel ranks."""
        return self.world // (self.tp * self.pp * self.cp)


def prefill_load(shape: DecoderShape, layout: DecoderLayout, *, tokens: int, tiles: int = 0, tower_ranks: Optional[int] = None) -> Load:
    """The forward pass of one prompt, with the head on its last token.

    Args:
        shape: of the decoder.
        layout: pp must be 1.
        tokens: of the prompt.
        tiles: that the tower encodes.
        tower_ranks: ranks that share the tiles evenly; None: all.

    Raises:
        ValueError: the layout has pipeline stages.
    """
    if layout.pp != 1:
        raise ValueError(f"pp {layout.pp}: prefill is counted without pipeline stages; expected pp 1")
    load = _passes(shape, layout, length=tokens, samples=1, packs=1, matrix_passes=1, attention_products=2)
    tower = tiles * _PER_TILE / (tower_ranks or layout.world)
    head = 2.0 * shape.vocabulary * shape.hidden / layout.tp
    return replace(load, tower=Kernels(tower, 1.0 if tiles else 0.0), head=Kernels(head, 1.0))


def training_load(
    shape: DecoderShape, layout: DecoderLayout, *, length: int, micro_batch: int, global_batch: int, recompute: bool = False
) -> Load:
    """A training step on text, with every token supervised, on the busiest stage.

    Args:
        shape, layout: of the run.
        length: tokens of a sample, one document each.
        micro_batch: samples of a pack.
        global_batch: samples of a step.
        recompute: whether whole layers run their forward pass again.
    """
    packs = global_batch // (layout.dp * micro_batch)
    again = 1 if recompute else 0
    load = _passes(
        shape, layout, length=length, samples=micro_batch, packs=packs, matrix_passes=3 + again, attention_products=2 + 5 + 2 * again
    )
    rows = length // layout.cp * micro_batch
    head = 3 * 2.0 * rows * shape.vocabulary * shape.hidden / layout.tp
    logits = rows * shape.vocabulary / layout.tp * (_BF16 + 2 * _FP32) * _PASSES
    own = shape.weights / (layout.tp * layout.pp)
    replicas = layout.dp * layout.cp
    share = replicas if layout.distributed_optimizer else 1
    transfers = _replica_transfers(layout, own)
    layer = 2.0 * shape.layer_weights * length + 2.0 * length**2 * shape.hidden
    model = 3 * (shape.layers * layer + 2.0 * shape.vocabulary * shape.hidden * length)
    return replace(
        load,
        head=Kernels(head * packs, 3.0 * packs),
        memory=load.memory + logits * packs,
        replicas=transfers,
        optimizer=own / share * (3 * _FP32 * 2 + _FP32 + _BF16),
        model_flops=model * global_batch / layout.world,
        idle=(layout.pp - 1) / (packs * layout.chunks + layout.pp - 1),
    )


def _passes(
    shape: DecoderShape, layout: DecoderLayout, *, length: int, samples: int, packs: int, matrix_passes: int, attention_products: int
) -> Load:
    """Layers of a stage, for all packs. A pass is one product of activations with weights; attention has two products forward."""
    layers = shape.layers / layout.pp * packs
    rows = length / layout.cp * samples
    width = shape.hidden // shape.heads
    matrix = 2.0 * shape.layer_weights * rows / layout.tp
    # causal: half of the pairs; each product is of two FLOPs for every pair and width
    attention = attention_products * 2.0 * (length**2 / 2 * samples) * shape.hidden / (layout.tp * layout.cp)
    kv = 2 * shape.kv_heads * width
    # what a layer writes, in values for each token: two norms, projections, rotated queries and keys, attention, and two sums
    sharded = (shape.hidden + kv) + (shape.hidden + kv / 2) + shape.hidden + 3 * shape.ffn
    written = (sharded / layout.tp + 6 * shape.hidden / layout.tp) * rows * _BF16
    ring_steps = layout.cp // layout.ulysses
    forward_only = matrix_passes == 1
    return Load(
        matrix=Kernels(matrix * layers * matrix_passes, layers * _PRODUCTS * matrix_passes),
        attention=Kernels(attention * layers, layers * ring_steps * (1 if forward_only else matrix_passes - 1)),
        memory=written * _PASSES * layers * matrix_passes,
        tensor=_tensor_transfers(shape, layout, rows, layers * (1 if forward_only else matrix_passes - 0.5)),
        exchange=_ulysses_transfers(shape, layout, rows, kv, layers * (1 if forward_only else matrix_passes - 1)),
        ring=_ring_transfers(layout, rows, kv, layers * matrix_passes),
        pipeline=_pipeline_transfers(shape, layout, rows, packs),
        tensor_overlaps=layout.tensor_overlaps,
    )


def _tensor_transfers(shape: DecoderShape, layout: DecoderLayout, rows: float, times: float) -> tuple[Transfer, ...]:
    """Sequence parallelism: two gathers and two scatters of hidden states a layer; one gather more for each two passes backward."""
    if layout.tp == 1:
        return ()
    size = rows * shape.hidden * _BF16
    group: dict[str, Any] = {"ranks": layout.tp, "reach": layout.tp, "calls": 2 * times}
    gathered = Transfer(name="all_gather", bytes=2 * times * size / layout.tp, **group)
    return gathered, Transfer(name="reduce_scatter", bytes=2 * times * size, **group)


def _ulysses_transfers(shape: DecoderShape, layout: DecoderLayout, rows: float, kv: float, times: float) -> tuple[Transfer, ...]:
    if layout.ulysses == 1:
        return ()
    size = rows * (2 * shape.hidden + kv) / layout.tp * _BF16
    reach = layout.tp * (layout.ulysses - 1) + 1
    return (Transfer(name="all_to_all", ranks=layout.ulysses, reach=reach, calls=4 * times, bytes=size * times),)


def _ring_transfers(layout: DecoderLayout, rows: float, kv: float, times: float) -> tuple[Transfer, ...]:
    steps = layout.cp // layout.ulysses
    if steps == 1:
        return ()
    size = rows * kv / layout.tp * _BF16 * (steps - 1)
    return (Transfer(name="send", ranks=steps, reach=layout.tp * (layout.cp - 1) + 1, calls=times * (steps - 1), bytes=size * times),)


def _pipeline_transfers(shape: DecoderShape, layout: DecoderLayout, rows: float, packs: int) -> tuple[Transfer, ...]:
    if layout.pp == 1:
        return ()
    sent = 2 * packs * layout.chunks
    size = rows * shape.hidden / layout.tp * _BF16
    reach = layout.world // layout.pp + 1
    return (Transfer(name="send", ranks=2, reach=reach, calls=sent, bytes=sent * size),)


def _replica_transfers(layout: DecoderLayout, own: float) -> tuple[Transfer, ...]:
    ranks = layout.dp * layout.cp
    if ranks == 1:
        return ()
    group: dict[str, Any] = {"ranks": ranks, "reach": layout.tp * (ranks - 1) + 1, "calls": 1.0}
    if not layout.distributed_optimizer:
        return (Transfer(name="all_reduce", bytes=own * _FP32, **group),)
    scattered = Transfer(name="reduce_scatter", bytes=own * _FP32, **group)
    return scattered, Transfer(name="all_gather", bytes=own * _BF16 / ranks, **group)
