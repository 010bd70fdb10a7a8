"""What the packs of one step add up to: the loss, the loss of each source, and the work. The keys are those of the built-in engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from mindspeed_vita.config import Recipe
from mindspeed_vita.data.batch import PackedBatch
from mindspeed_vita.engine.objective import Objective, ObjectiveResult, averages, report_table
from mindspeed_vita.engine.work import Work, pack_work
from mindspeed_vita.parallel.layout import ParallelLayout


class StepPacks:
    """The packs of one step on this rank.

    Args:
        recipe: the run.
        batches: the packs.
        objective: sums up their losses.
    """

    def __init__(self, recipe: Recipe, batches: Sequence[PackedBatch], *, objective: Objective) -> None:
        self._names, self._tables = objective.names, list[torch.Tensor]()
        self._loss_count = sum(int(batch.loss_count) for batch in batches)
        self._samples = sum(len(batch.sample_ids) for batch in batches)
        self._tiles = sum(len(batch.tile_first_token) for batch in batches)
        self._work = Work()
        for batch in batches:
            self._work += pack_work(recipe, batch)

    def count(self, layout: ParallelLayout) -> int:
        """What the step's loss is divided by. Collective over dp and cp."""
        return int(_over_ranks(torch.tensor([_once(layout) * self._loss_count], dtype=torch.float64), layout)[0])

    def add(self, result: ObjectiveResult) -> None:
        """One pack was computed."""
        self._tables.append(report_table(result, self._names))

    def totals(self, layout: ParallelLayout) -> dict[str, Any]:
        """loss, supervised, samples, tiles, the three counts of flops, and report, the loss of each source. Collective over dp and cp."""
        of_packs = [self._samples, self._tiles, self._work.total, self._work.attention, self._work.tower]
        sums = torch.stack(self._tables).cpu().double().sum(0)
        packs = torch.tensor(of_packs, dtype=torch.float64) * _once(layout)
        both = _over_ranks(torch.cat([sums.flatten(), packs]), layout)
        rows, (samples, tiles, total, attention, tower) = both[: sums.numel()].view_as(sums), both[sums.numel() :].tolist()
        (loss, *parts), (count, *counts) = rows[:, 0].tolist(), rows[:, 1].tolist()
        return {
            "loss": loss / max(int(count), 1),
            "supervised": int(count),
            "samples": int(samples),
            "tiles": int(tiles),
            "flops": total,
            "flops_attention": attention,
            "flops_tower": tower,
            "report": averages(self._names, parts, counts),
        }


def _once(layout: ParallelLayout) -> int:
    """A pack is counted by one of the ranks that share it."""
    return int(layout.cp_rank == 0)


def _over_ranks(values: torch.Tensor, layout: ParallelLayout) -> torch.Tensor:
    if layout.dp_size * layout.cp_size > 1:
        dist.all_reduce(values, group=layout.dp_cp_group)
    return values
