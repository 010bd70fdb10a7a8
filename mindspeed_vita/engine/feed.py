"""Between the recipe and data/: the data set and this rank's endless packs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mindspeed_vita.config import Recipe
from mindspeed_vita.parallel.layout import ParallelLayout

if TYPE_CHECKING:
    from mindspeed_vita.data.dataset import PackDataset
    from mindspeed_vita.data.loader import PackLoader


def open_dataset(recipe: Recipe, layout: ParallelLayout) -> PackDataset:
    """The packed data set of a recipe.

    Raises:
        ValueError: a file, the tokenizer or a setting does not fit.
    """
    from mindspeed_vita.data.dataset import build_data

    return build_data(
        recipe.data,
        tokens_per_tile=recipe.model.tokens_per_tile,
        tile_size=recipe.model.vision.tile_size,
        vocab_size=recipe.model.language.vocab_size,
        cp_size=layout.cp_size,
        tp_size=layout.tp_size,
    )


def open_loader(dataset: PackDataset, recipe: Recipe, layout: ParallelLayout, *, start_pack: int) -> PackLoader:
    """This rank's packs from a pack number on, without end. Every rank iterates, whatever its pipeline stage."""
    from mindspeed_vita.data.loader import PackLoader

    return PackLoader(
        dataset,
        start_pack=start_pack,
        dp_rank=layout.dp_rank,
        dp_size=layout.dp_size,
        micro_batches=recipe.train.global_batch // layout.dp_size,
        group_rank=layout.tile_rank,
        group_size=layout.tile_group_size,
        cp_size=layout.ring_size,
        decode=layout.is_first_stage,
        num_workers=recipe.data.num_workers,
    )
