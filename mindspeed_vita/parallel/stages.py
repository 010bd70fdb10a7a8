"""Which decoder layers each pipeline stage has, as the recipe says or by what tower and head cost."""

from __future__ import annotations

from mindspeed_vita.config import Recipe
from mindspeed_vita.data.dealing import layer_weights, relative_work
from mindspeed_vita.sharding.stages import balanced_layers

SUPERVISED_SHARE = 0.1
"""Share of the tokens for which the masked head computes logits. It is assumed: it depends on the data."""
TILE_MARKERS = 2
"""Tokens around the tokens of a tile."""


def stage_layers(recipe: Recipe) -> tuple[int, ...]:
    """Decoder layers of each chunk in the model's order, a chunk for each stage and virtual stage. The recipe must be valid."""
    parallel, num_layers = recipe.parallel, recipe.model.language.num_layers
    chunks = parallel.pp * parallel.virtual_stages
    if parallel.stage_layers:
        return parallel.stage_layers
    if parallel.layer_split == "even" or chunks == 1:
        return (num_layers // chunks,) * chunks
    first, last = tower_and_head(recipe)
    return balanced_layers(num_layers, chunks, first=first, last=last)


def layers_of(recipe: Recipe, pp_rank: int, virtual_stage: int = 0) -> range:
    """The decoder layers of one chunk, by their number in the whole model. A micro-batch passes all ranks before any of them again."""
    layers, place = stage_layers(recipe), virtual_stage * recipe.parallel.pp + pp_rank
    start = sum(layers[:place])
    return range(start, start + layers[place])


def tower_and_head(recipe: Recipe) -> tuple[float, float]:
    """Work of a pack in the tower and in the head, in decoder layers.

    Counted are multiply-adds, a backward pass as two forward passes: one for the gradient of the inputs, and one for that of the
    weights where they train. A pack is taken to be full of tiles. Its documents are short with resets, so that attention is left
    out; without resets it is one document. The ranks of a stage share tiles, tokens and heads alike, so their number cancels out.
    """
    model, language, train = recipe.model, recipe.model.language, recipe.train
    work, length = relative_work(model), recipe.data.seq_length
    tiles = length // (model.tokens_per_tile + TILE_MARKERS)
    attention = 0.0 if recipe.data.resets else work.attention * length
    trains = set(train.modules)
    again = 1 if train.recompute == "full" else 0
    layer = (2 + ("language" in trains) + again) * length * (1 + attention) / language.num_layers
    tower = (3 + again if "vision" in trains else 1) * tiles * work.tile
    rows = SUPERVISED_SHARE if model.lm_head == "masked" else 1.0
    per_token = language.hidden_size * language.vocab_size / (layer_weights(language) * language.num_layers)
    head = (2 + ("language" in trains)) * rows * length * per_token
    return tower / layer, head / layer
