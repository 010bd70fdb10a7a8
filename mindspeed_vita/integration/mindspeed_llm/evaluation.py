"""Held-out loss under Megatron's own evaluation: what its forward_step does while the model is in evaluation mode.

Megatron says when (--eval-interval, and at the end) and over how many global batches (--eval-iters); it adds up, prints and logs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mindspeed_vita.checkpoint.gates import write_gate
from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.config import Recipe
from mindspeed_vita.data.batch import PackedBatch
from mindspeed_vita.engine.held_out import COUNT, HITS, LOSS, TOKENS, score_table, scores_of
from mindspeed_vita.engine.held_out_packs import HeldOutPacks
from mindspeed_vita.engine.held_out_watch import PACKS, HeldOutWatch
from mindspeed_vita.integration.mindspeed_llm.chunk_passes import ChunkPasses, chunk_of
from mindspeed_vita.integration.mindspeed_llm.telemetry import StepLog
from mindspeed_vita.models.inputs import ModelInputs
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.parallel.shard import Sharder

Report = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""(sum, count) by the name that Megatron prints."""
ACCURACY = "token accuracy"


class HeldOutEvaluation:
    """The held-out packs of one rank, and the scores of the last stage.

    Args:
        recipe: the run, with eval.mixture.
        layout: this rank's place.
        shard: cuts packs for this rank.
        packs: in rounds of whole global batches, with groups that take host tensors.
        loss: name under which Megatron prints the loss.
        log: takes each evaluation down.
    """

    def __init__(self, recipe: Recipe, layout: ParallelLayout, shard: Sharder, packs: HeldOutPacks, *, loss: str, log: StepLog) -> None:
        self.recipe, self.layout, self.packs, self._log = recipe, layout, packs, log
        self._shard, self._loss = shard, loss
        self._step, self._failed, self._started = 0, 0, 0.0
        self._batches: list[PackedBatch] = []
        self._passes: ChunkPasses[PackedBatch] = ChunkPasses((), 1)
        self._tables: list[torch.Tensor] = []

    def prepare(self, step: int) -> None:
        """Reads the packs where Megatron is about to evaluate. Collective over the world.

        All packs of this rank are then in host memory, tiles included, until `drop`. They are read between two steps: inside the
        pipeline the stages could not agree on samples that do not decode.

        Args:
            step: optimizer steps done.
        """
        told, steps = self.recipe.eval, self.recipe.train.steps
        self._step = step
        self.drop()
        if step and (step % told.every == 0 or step == steps):
            with closing(self.packs.read(step)) as packs:
                self._batches = list(packs)
            self.packs.failed.settle(self.packs.layout.dp_cp_group, learnt=1, step=step, last_step=steps)
            lost = torch.tensor(self.packs.lost if self.layout.cp_rank == 0 else 0)
            dist.all_reduce(lost, group=self.packs.layout.dp_cp_group)
            self._failed = int(lost)
        # the last step is measured at its interval, and again at the end
        self._passes = ChunkPasses(cycle(self._batches), self.recipe.parallel.virtual_stages)

    def drop(self) -> None:
        """Gives the memory of the packs back."""
        self._batches, self._passes, self._tables = [], ChunkPasses((), 1), []

    def __call__(self, model: Any) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
        """Scores of one micro-batch's tokens (hidden states before the last stage), and what makes a report of them."""
        batch = self._passes.take(chunk_of(model))
        if not self._tables:
            self._started = time.perf_counter()
        inputs = self._shard(batch)
        return model(inputs, with_hits=True), partial(self._report, inputs)

    def _report(self, inputs: ModelInputs, scores_2T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Report]:
        """(sum of losses, what it is divided by, sums and counts over cp and dp), as Megatron's loss function gives them."""
        names = self.packs.dataset.source_names
        table = score_table(scores_2T, inputs, len(names))
        dist.all_reduce(table, group=self.layout.dp_cp_group)
        host = table.cpu().double()
        self._tables.append(host)
        if len(self._tables) == len(self._batches):
            self._conclude()
        report: Report = {self._loss: (table[0, LOSS], table[0, COUNT]), ACCURACY: (table[0, HITS], table[0, TOKENS])}
        for name, row, there in zip(names, table[1:], host[1:]):
            if there[TOKENS]:
                report.update({f"loss/{name}": (row[LOSS], row[COUNT]), f"accuracy/{name}": (row[HITS], row[TOKENS])})
        return table[0, LOSS].clone(), inputs.loss_count.clone(), report

    def _conclude(self) -> None:
        """After the last micro-batch, on the last stage: the line of metrics.jsonl, and the gate of the run's last step."""
        rows, layout = torch.stack(self._tables).sum(0).tolist(), self.layout
        self._tables = []
        if not rows[0][TOKENS]:
            raise ValueError(f"the {self.packs.count} held-out packs of {self.recipe.eval.mixture} have no supervised token")
        scores = scores_of(rows, self.packs, failed=self._failed, seconds=time.perf_counter() - self._started)
        self._log.write_evaluation({"step": self._step, **scores.entry(), PACKS: self.packs.identity})
        watch = HeldOutWatch(self.recipe, self.packs.identity)
        watch.add(self._step, scores.loss)
        gate = watch.gate(self._step)
        if gate is None or self._step != self.recipe.train.steps or (layout.tp_rank, layout.cp_rank, layout.dp_rank) != (0, 0, 0):
            return
        path = write_gate(Path(self.recipe.checkpoint.directory) / atomic.step_name(self._step), gate)
        print(f"{self.recipe.name}: {gate.describe()} ({path})", flush=True)
