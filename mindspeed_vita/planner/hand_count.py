"""The work of a step of one rank, counted by hand: matrix products from their shapes, and attention from its query-key pairs.

Nothing here is traced. It is what the work of a trace is compared with (scripts/bench/planner.py, tests/unit/planner). It holds for recipes
in which everything trains, whose stages have the same number of layers and whose tower and projector are those of the proof (proof.py).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from mindspeed_vita import sharding
from mindspeed_vita.choices import Recompute
from mindspeed_vita.config import Recipe
from mindspeed_vita.parallel.ring_groups import told_node_size
from mindspeed_vita.planner.trace.packs import PackContent, tile_places
from mindspeed_vita.planner.trace.result import Trace

_LAYER_MODES: tuple[Recompute, ...] = ("full", "full_but_attention")
"""Modes that compute layers again, those of the tower as well."""
_FORWARD, _BACKWARD = 2, 5
"""Matrix products of attention. The backward pass has scores again, and the gradients of values, probabilities, queries and keys."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one rank has of a pack."""

    stage: int
    """Pipeline stage."""
    tokens: int
    """That its context-parallel rank holds."""
    supervised: int
    """Of them."""
    pairs: int
    """Query-key pairs that its ring rank attends to: each query sees its document's tokens up to itself."""
    tiles: int
    """That it encodes."""


def share_of(recipe: Recipe, world: int, rank: int, content: PackContent) -> Share:
    """What a rank has of each pack. Ranks are numbered over tp first, then cp, dp and pp.

    Args:
        recipe: layout and packs.
        world: number of ranks.
        rank: which of them.
        content: what fills the packs.
    """
    parallel, length = recipe.parallel, recipe.data.seq_length
    tp_rank, cp_rank = rank % parallel.tp, rank // parallel.tp % parallel.cp
    bounds = np.linspace(0, length, content.documents + 1).astype(np.int64)
    before = bounds[np.searchsorted(bounds, np.arange(length), side="right") - 1]
    sees = np.arange(length) - before + 1
    ends = bounds[np.searchsorted(bounds, np.arange(length), side="right")]
    supervised = np.arange(length) >= ends - (content.supervised * (ends - before)).astype(np.int64)

    ring = parallel.cp // parallel.ulysses
    plan = sharding.make_cp_plan(bounds, ring, node_size=told_node_size(parallel))
    owned = sharding.index(plan.shared_by(parallel.ulysses), cp_rank)
    queries = sharding.index(plan, cp_rank // parallel.ulysses)

    tiles = len(tile_places(bounds, recipe.model.tokens_per_tile, content.vision))
    together = parallel.vision_parallel == "tensor"
    groups = parallel.cp if together else parallel.cp * parallel.tp
    place = cp_rank if together else cp_rank * parallel.tp + tp_rank
    return Share(
        stage=rank // (world // parallel.pp),
        tokens=len(owned),
        supervised=int(supervised[owned].sum()),
        pairs=int(sees[queries].sum()),
        tiles=(place + 1) * tiles // groups - place * tiles // groups,
    )


def counted_work(recipe: Recipe, world: int, rank: int, content: PackContent) -> dict[tuple[str, str], int]:
    """FLOPs of a step of a rank by part (layers, attention, tower, head) and phase (forward, recompute, backward); only those above 0.

    A multiply-add is two operations.

    Args:
        recipe, world, rank, content: as for `share_of`.
    """
    parallel = recipe.parallel
    share = share_of(recipe, world, rank, content)
    packs = recipe.train.global_batch * parallel.tp * parallel.pp * parallel.cp // world
    found: Counter[tuple[str, str]] = Counter()
    _decoder(found, recipe, share)
    if share.stage == 0:
        _tower(found, recipe, share)
    if share.stage == parallel.pp - 1:
        _head(found, recipe, share)
    return {key: packs * work for key, work in found.items() if work}


def work_of(trace: Trace) -> dict[tuple[str, str], int]:
    """The work of a trace by the same parts and phases."""
    found: Counter[tuple[str, str]] = Counter()
    for (place, _), work in trace.work.items():
        found[place.part, place.phase] += work
    return dict(found)


def _decoder(found: Counter[tuple[str, str]], recipe: Recipe, share: Share) -> None:
    language, parallel, train = recipe.model.language, recipe.parallel, recipe.train
    layers, hidden = language.num_layers // parallel.pp, language.hidden_size
    width, keys = language.num_heads * language.head_dim, language.num_kv_heads * language.head_dim
    # each matrix is cut over tp, and multiplies all tokens of the context-parallel rank
    up = 2 * share.tokens * hidden * 2 * language.ffn_hidden_size // parallel.tp  # gate and up
    down = up // 2
    projections = 2 * share.tokens * hidden * (2 * width + 2 * keys) // parallel.tp
    product = 2 * share.pairs * width // (parallel.tp * parallel.ulysses)  # of attention
    once = projections + up + down
    found["layers", "forward"] += layers * once
    found["layers", "backward"] += layers * 2 * once  # gradients of inputs and of weights
    found["attention", "forward"] += layers * _FORWARD * product
    found["attention", "backward"] += layers * _BACKWARD * product
    again = train.recompute_layers or layers
    if train.recompute in _LAYER_MODES:
        found["layers", "recompute"] += again * once
    if train.recompute == "full":
        found["attention", "recompute"] += again * _FORWARD * product
    if train.recompute == "mlp":
        found["layers", "recompute"] += again * up


def _tower(found: Counter[tuple[str, str]], recipe: Recipe, share: Share) -> None:
    """Tower and projector."""
    vision, projector = recipe.model.vision, recipe.model.projector
    cut = recipe.parallel.tp if recipe.parallel.vision_parallel == "tensor" else 1
    patches, width, merged = vision.grid**2, vision.hidden_size, projector.pixel_shuffle**2
    positions = patches + 1  # a class token stands before the patches
    matrices = 2 * share.tiles * vision.num_layers * positions * width * (4 * width + 2 * vision.ffn_hidden_size) // cut
    product = 2 * share.tiles * vision.num_layers * positions**2 * width // cut  # of attention
    embedding = 2 * share.tiles * patches * 3 * vision.patch_size**2 * width
    rows = 2 * share.tiles * patches // merged * projector.hidden_size * (merged * width + recipe.model.language.hidden_size)
    found["tower", "forward"] += matrices + _FORWARD * product + embedding + rows
    # nothing wants the gradient of pixels
    found["tower", "backward"] += 2 * matrices + _BACKWARD * product + embedding + 2 * rows
    if recipe.train.recompute in _LAYER_MODES:
        found["tower", "recompute"] += matrices + _FORWARD * product


def _head(found: Counter[tuple[str, str]], recipe: Recipe, share: Share) -> None:
    """Logits of supervised tokens; the backward pass has them again."""
    language = recipe.model.language
    rows = max(1, share.supervised)  # a rank without supervised tokens takes one row
    logits = 2 * rows * language.hidden_size * language.vocab_size // recipe.parallel.tp
    found["head", "forward"] += logits
    found["head", "backward"] += 3 * logits
