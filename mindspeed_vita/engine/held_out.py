"""Held-out loss: the training step without its backward pass, on a fixed list of packs. It leaves no trace in the run.

Shapes: T tokens of this context-parallel rank, R sources (none where the mixture has one only).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist

from mindspeed_vita.checkpoint.native.atomic import nothing
from mindspeed_vita.config import Recipe
from mindspeed_vita.engine.held_out_packs import HeldOutPacks
from mindspeed_vita.engine.metrics import HELD_OUT_LOSS
from mindspeed_vita.engine.random_state import random_state, set_random_state
from mindspeed_vita.models.inputs import ModelInputs
from mindspeed_vita.parallel.chunks import for_schedule
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.parallel.shard import Sharder
from mindspeed_vita.platform import Platform

LOSS, COUNT, HITS, TOKENS = range(4)
"""Columns of a table of scores: sum of losses, what it is divided by, tokens predicted right, supervised tokens."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Of all held-out packs, or of one source."""

    loss: float
    """Sum of losses / number of supervised tokens. With data.loss_weighting=sample tokens weigh, and are counted, as in training."""
    accuracy: float
    """Share of the supervised tokens that have the highest logit."""
    tokens: int
    """Supervised tokens."""


@dataclass(frozen=True, kw_only=True)
class HeldOutScores(Score):
    """One evaluation; the same on every rank."""

    packs: int
    failed: int
    """Samples whose media did not decode; their tokens are not counted."""
    seconds: float
    sources: dict[str, Score] = field(default_factory=dict)
    """By entry of the mixture, where it has several. Entries without a supervised token are left out."""

    def entry(self) -> dict[str, Any]:
        """What metrics.jsonl holds of it."""
        found: dict[str, Any] = {HELD_OUT_LOSS: self.loss, "eval/accuracy": self.accuracy, "eval/tokens": self.tokens}
        for name, score in self.sources.items():
            found.update({f"{HELD_OUT_LOSS}/{name}": score.loss, f"eval/accuracy/{name}": score.accuracy})
        return {**found, "eval/failed": self.failed, "eval/seconds": self.seconds}

    def describe(self) -> str:
        """One line for the terminal."""
        shown = sorted(self.sources.items(), key=lambda item: -item[1].loss)
        by_source = f" ({', '.join(f'{name} {score.loss:.3f}' for name, score in shown)})" if shown else ""
        lost = f", {self.failed:,} samples did not decode" if self.failed else ""
        took = f"{self.packs:,} packs in {self.seconds:.1f} s"
        return f"held-out loss {self.loss:.4f}{by_source}, token accuracy {self.accuracy:.1%}, {took}{lost}"


def score_table(scores_2T: torch.Tensor, inputs: ModelInputs, num_sources: int) -> torch.Tensor:
    """One rank's part of the scores of one micro-batch: float32[1 + R, 4] on the device, all tokens first, then each source.

    Args:
        scores_2T: of VitaModel.forward with with_hits.
        inputs: what the model computed them from.
        num_sources: entries of the mixture.
    """
    losses_T, hits_T = scores_2T
    rows_Q = inputs.supervised_Q
    losses_Q, hits_Q, weights_Q = losses_T[rows_Q], hits_T[rows_Q], inputs.weights_T[rows_Q]
    ones_Q = (inputs.labels_T[rows_Q] >= 0).float()  # on an NPU some unsupervised tokens are among them
    parts = [torch.stack([losses_T.sum(), inputs.loss_count.float(), hits_T.sum(), ones_Q.sum()])]
    for source in range(num_sources if num_sources > 1 else 0):
        elsewhere_Q = inputs.source_Q != source
        parts.append(torch.stack([values.masked_fill(elsewhere_Q, 0).sum() for values in (losses_Q, weights_Q, hits_Q, ones_Q)]))
    return torch.stack(parts)


def scores_of(rows: list[list[float]], packs: HeldOutPacks, *, failed: int, seconds: float) -> HeldOutScores:
    """The scores of an evaluation.

    Args:
        rows: of the sum of all tables of scores; at least one token is supervised.
        packs: what was evaluated.
        failed: samples that did not decode.
        seconds: that it took.
    """
    sources = {name: Score(**_score(row)) for name, row in zip(packs.dataset.source_names, rows[1:]) if row[TOKENS]}
    return HeldOutScores(**_score(rows[0]), packs=packs.count, failed=failed, seconds=seconds, sources=sources)


class HeldOut:
    """Measures the held-out loss of a model, under any layout.

    Args:
        recipe: the run, with eval.mixture.
        layout: this rank's place.
        platform: this rank's device.
        model: of build_model, with or without megatron.core's DDP around it.
        packs: what is evaluated.
    """

    def __init__(self, recipe: Recipe, layout: ParallelLayout, platform: Platform, *, model: Any, packs: HeldOutPacks) -> None:
        from megatron.core.pipeline_parallel import get_forward_backward_func

        self.recipe, self.layout, self.platform = recipe, layout, platform
        self.model, self.packs = model, packs
        self.after_round: Callable[[], None] = nothing
        """Called after each round of packs: a sign of progress."""
        self._shard = Sharder(recipe, layout, platform)
        self._schedule = get_forward_backward_func()

    def measure(self, step: int = 0) -> HeldOutScores:
        """Loss and token accuracy of the model as it is. Collective over the world.

        Args:
            step: optimizer steps done.

        Raises:
            ValueError: no token of the packs is supervised, or too many samples do not decode.
        """
        start = time.perf_counter()
        tables: list[torch.Tensor] = []
        with _without_a_trace(self.model, self.platform), torch.no_grad(), closing(self.packs.read(step)) as packs:
            for _ in range(self.packs.rounds):
                tables += self._round(packs)
                self.after_round()
        rows, failed = self._sum(tables)
        if not rows[0][TOKENS]:
            raise ValueError(
                f"the {self.packs.count} held-out packs of {self.recipe.eval.mixture} have no supervised token ({failed:,} samples did not "
                "decode): look at one with `vita data show`"
            )
        self.packs.failed.settle(learnt=1, step=step, last_step=self.recipe.train.steps)
        return scores_of(rows, self.packs, failed=failed, seconds=time.perf_counter() - start)

    def _round(self, packs: Iterator[Any]) -> list[torch.Tensor]:
        """The table of each micro-batch of a round, on the last pipeline stage."""
        found = self._schedule(
            forward_step_func=self._forward,
            **for_schedule(self.model, islice(packs, self.packs.micro_batches)),
            num_microbatches=self.packs.micro_batches,
            seq_length=self.recipe.data.seq_length,
            micro_batch_size=1,
            forward_only=True,
        )
        return list(found) if self.layout.is_last_stage else []

    def _forward(self, batches: Iterator[Any], model: Any) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
        inputs = self._shard(next(batches))

        def scores(scores_2T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            table = score_table(scores_2T, inputs, len(self.packs.dataset.source_names))
            # the schedule divides the first two in place and keeps the third
            return table[0, LOSS].clone(), inputs.loss_count.clone(), table

        return model(inputs, with_hits=True), scores

    def _sum(self, tables: list[torch.Tensor]) -> tuple[list[list[float]], int]:
        """The rows of the table of all packs, and the samples that failed, on every rank."""
        layout, sources = self.layout, len(self.packs.dataset.source_names)
        num_rows = 1 + (sources if sources > 1 else 0)
        totals = torch.zeros(4 * num_rows + 1, dtype=torch.float64)
        for table in torch.stack(tables).cpu().double() if tables else ():
            totals[:-1] += table.flatten()
        totals[-1] = self.packs.lost if layout.cp_rank == 0 else 0
        if layout.dp_size * layout.cp_size > 1:
            dist.all_reduce(totals, group=layout.dp_cp_group)
        if layout.pp_size > 1:
            dist.broadcast(totals, src=dist.get_global_rank(layout.pp_group, layout.pp_size - 1), group=layout.pp_group)
        return totals[:-1].view(num_rows, 4).tolist(), int(totals[-1])


def _score(row: list[float]) -> dict[str, Any]:
    return {"loss": row[LOSS] / row[COUNT], "accuracy": row[HITS] / row[TOKENS], "tokens": int(row[TOKENS])}


@contextmanager
def _without_a_trace(model: torch.nn.Module, platform: Platform) -> Iterator[None]:
    """The model in evaluation mode. Afterwards each module is in the mode that it was in, and so are the random generators."""
    modes = [(module, module.training) for module in model.modules()]
    states = random_state(platform)
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        set_random_state(platform, states)
