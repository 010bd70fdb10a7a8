"""The packs of held-out evaluations: the same ones each time, agreed on by the ranks that share them. Both engines read them here."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Optional

import torch

from mindspeed_vita.config import Recipe
from mindspeed_vita.engine.faults import FailedSamples
from mindspeed_vita.engine.feed import open_dataset, open_loader
from mindspeed_vita.parallel.layout import ParallelLayout

if TYPE_CHECKING:
    from mindspeed_vita.data.batch import PackedBatch
    from mindspeed_vita.data.dataset import PackDataset


def held_out_recipe(recipe: Recipe) -> Recipe:
    """The run with the held-out mixture as its data. All other settings of the data section stay.

    Args:
        recipe: a run whose eval.mixture is set.
    """
    told = recipe.eval
    root = told.media_root or recipe.data.media_root
    # pairs matter to objectives that compare answers; the held-out loss is that of each token
    data = replace(recipe.data, mixture=told.mixture, media_root=root, seed=told.seed, group=1)
    # every pack counts as much, and packs must not change places with others that are not evaluated
    return replace(recipe, data=data, train=replace(recipe.train, steps=1, even_steps=0))


class HeldOutPacks:
    """This rank's held-out packs, in rounds of as many micro-batches on every rank.

    Where the packs do not fill the rounds, further packs stand in with all of their labels masked, so they change nothing.

    Args:
        recipe: the run, with eval.mixture.
        layout: this rank's place.
        failed: record of the held-out samples that do not decode; see open_held_out.
        dataset: the held-out data.
        whole_batches: every round is a global batch of the training, as Megatron's evaluation has it. Otherwise rounds are as even as
            they can be, and none is larger than that.
    """

    def __init__(
        self, recipe: Recipe, layout: ParallelLayout, *, dataset: PackDataset, failed: FailedSamples, whole_batches: bool = False
    ) -> None:
        self.layout, self.dataset, self.failed = layout, dataset, failed
        self.count = _count(recipe, dataset)
        """Packs that are evaluated."""
        most = recipe.train.global_batch // layout.dp_size
        on_a_rank = -(-self.count // layout.dp_size)
        self.rounds = -(-on_a_rank // most)
        self.micro_batches = most if whole_batches else -(-on_a_rank // self.rounds)
        """Of a round, on this rank."""
        if recipe.parallel.virtual_stages > 1:  # an interleaved pipeline takes packs in groups; a whole step's packs are such a number
            self.micro_batches += -self.micro_batches % recipe.parallel.pp
        self.lost = 0
        """Samples of this rank's packs that did not decode, as far as the last reading got."""
        train = replace(recipe.train, global_batch=self.micro_batches * layout.dp_size)
        self._told = replace(held_out_recipe(recipe), train=train)

    @property
    def identity(self) -> str:
        """Equal identities mean equal packs, so that losses can be compared."""
        return f"{self.dataset.fingerprint[:12]}-{self.count}"

    def read(self, step: int) -> Generator[PackedBatch, None, None]:
        """All packs of this rank, round after round. Collective over the ranks that share a pack. The caller closes it.

        Args:
            step: optimizer steps done, for the quarantine file.
        """
        self.lost = 0
        loader = open_loader(self.dataset, self._told, self.layout, start_pack=0)
        try:
            for number, batch in zip(islice(loader.numbers(), self.rounds * self.micro_batches), loader):
                agreed = self.failed.agree(batch, self.layout, step)
                if number < self.count:
                    self.lost += int(agreed.failed.sum())
                    yield agreed
                else:
                    yield agreed.with_failed(torch.ones_like(agreed.failed))
        finally:
            loader.close()


def open_held_out(recipe: Recipe, layout: ParallelLayout) -> PackDataset:
    """The held-out data of a recipe. Collective, as open_dataset.

    Raises:
        ValueError: as open_dataset, about the held-out mixture.
    """
    try:
        return open_dataset(held_out_recipe(recipe), layout)
    except ValueError as error:
        # what the data section calls these, the eval section has keys of its own for
        reason = str(error).replace("data.mixture (of held-out data: eval.mixture)", "eval.mixture")
        reason = reason.replace("data.mixture", "eval.mixture").replace("data.media_root", "eval.media_root")
        raise ValueError(f"held-out data: {reason}") from error


def _count(recipe: Recipe, dataset: PackDataset) -> int:
    there, wanted = dataset.num_packs(0), recipe.eval.packs
    if wanted > there:
        raise ValueError(
            f"eval.packs={wanted}, but the held-out mixture {recipe.eval.mixture} gives {there} packs of {recipe.data.seq_length:,} "
            f"tokens; set eval.packs to {there} or fewer, or to 0 for all of them"
        )
    return wanted or there


def describe_overlap(recipe: Recipe, packs: HeldOutPacks, training: PackDataset) -> Optional[str]:
    """A warning where held-out packs hold rows that are trained on; None where they do not.

    Args:
        recipe: the run.
        packs: the held-out packs.
        training: the data of the run.
    """
    from mindspeed_vita.data.overlap import find_overlap

    found = find_overlap(packs.dataset, range(packs.count), training)
    if not found.shared:
        return None
    return (
        f"WARNING: {found.shared:,} of the {found.rows:,} held-out rows are in the training data too, the first is {found.example}; the "
        f"held-out loss of rows that are trained on says little: take them out of {recipe.data.mixture} or of {recipe.eval.mixture}"
    )
