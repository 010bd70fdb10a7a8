"""metrics.jsonl of a run of MindSpeed-LLM, with the keys of the built-in engine's, so that `vita watch` and `vita report` read it.

Megatron prints and logs its own lines as well. Its throughput counts the layers of a language model; the work here has the tower too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import torch
import torch.distributed as dist

from mindspeed_vita.config import Recipe
from mindspeed_vita.data.batch import PackedBatch
from mindspeed_vita.data.loader import PackLoader
from mindspeed_vita.engine.held_out_watch import PACKS
from mindspeed_vita.engine.metrics import MetricsLog, is_logged, open_log
from mindspeed_vita.engine.module_norms import by_key, megatron_norms
from mindspeed_vita.engine.objective import averages
from mindspeed_vita.engine.step import StepResult
from mindspeed_vita.engine.step_clock import StepClock
from mindspeed_vita.engine.step_entry import StepEntries, StepTimes
from mindspeed_vita.engine.work import Work, pack_work
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.platform import Platform
from mindspeed_vita.platform.phases import timed


class StepLog:
    """Counts a rank's packs, and writes a line for each logged step on the first rank of the last stage, which knows the loss.

    Args:
        recipe: the run; checkpoint.directory holds the file, none is written where it is empty.
        host: this rank's place, with groups that take host tensors.
        platform: this rank's device.
        loader: this rank's packs.
        names: further averages that the objective reports, such as the loss of each source.
        step: optimizer steps done; later lines of an earlier run go.
        copies: how many ranks hold each part of a distributed optimizer.
    """

    def __init__(
        self,
        recipe: Recipe,
        host: ParallelLayout,
        platform: Platform,
        loader: PackLoader,
        *,
        names: Sequence[str],
        step: int,
        copies: int = 1,
    ) -> None:
        self.recipe, self._host, self._loader, self._names = recipe, host, loader, tuple(names)
        self._entries = StepEntries(recipe, platform)
        self.clock = StepClock(platform)
        self._platform, self._saved, self._copies = platform, 0.0, copies
        self._log: Optional[MetricsLog] = None
        directory = recipe.checkpoint.directory
        if directory and host.is_last_stage and (host.tp_rank, host.cp_rank, host.dp_rank) == (0, 0, 0):
            Path(directory).mkdir(parents=True, exist_ok=True)
            self._log = open_log(recipe, Path(directory), step=step)
        self.begin()

    def begin(self) -> None:
        """A step starts."""
        self._started, self._waited = time.perf_counter(), self._loader.waited
        self._work, self._samples, self._tiles, self._supervised = Work(), 0, 0, 0
        self._tables: list[torch.Tensor] = []
        self._norms: Optional[torch.Tensor] = None
        self.clock.begin()

    @contextmanager
    def watching(self, optimizer: Any, chunks: Sequence[torch.nn.Module], step: int) -> Iterator[None]:
        """The block is Megatron's train_step. Its schedule ends where the optimizer begins, which clips gradients once it has them ready.

        Args:
            optimizer: Megatron's, which does not say when it does what.
            chunks: the parts of this rank's model, without wrappers.
            step: number of the step, from 1.
        """
        start, update, prepare = self.clock.mark(), optimizer.step, optimizer.prepare_grads
        own = {name: vars(optimizer)[name] for name in ("step", "prepare_grads") if name in vars(optimizer)}  # others may wrap them, too

        def timed_update(*arguments: Any, **named: Any) -> Any:
            self.clock.note("schedule", start)
            with self.clock.part("optimizer"):
                return update(*arguments, **named)

        def measured_prepare() -> Any:
            overflowed = prepare()
            if not overflowed and is_logged(step, self.recipe):
                self._norms = megatron_norms(optimizer, chunks, copies=self._copies)
            return overflowed

        optimizer.step, optimizer.prepare_grads = timed_update, measured_prepare
        try:
            with timed(self.clock.phases):
                yield
        finally:
            del optimizer.step, optimizer.prepare_grads
            vars(optimizer).update(own)

    def count(self, batch: PackedBatch) -> None:
        """Takes down a pack of the step."""
        self._work += pack_work(self.recipe, batch)
        self._samples += len(batch.sample_ids)
        self._tiles += len(batch.tile_first_token)
        self._supervised += batch.loss_count

    def add(self, table: torch.Tensor) -> None:
        """Takes down the sums and counts of a pack (objective.report_table), over dp x cp, on the last stage.

        Megatron's own averages are over all steps since its last line, also where a source was absent from some of them.
        """
        self._tables.append(table)

    def finish(self, step: int, loss: Optional[torch.Tensor], *, grad_norm: Any, rate: float, failed: int) -> None:
        """Writes the line of a step, if it is one that is logged. Collective over dp x cp. Waits for the device where it writes.

        Args:
            step: number of the step that ended, from 1.
            loss: of the step, by Megatron; None before the last stage.
            grad_norm: before clipping.
            rate: the recipe's learning rate in this step.
            failed: samples that failed for the first time.
        """
        if not is_logged(step, self.recipe):
            return
        mine = [self._samples, self._tiles, self._supervised, self._work.total, self._work.attention, self._work.tower]
        # the ranks of a context-parallel group share a pack
        totals = torch.tensor(mine if self._host.cp_rank == 0 else [0] * len(mine), dtype=torch.float64)
        dist.all_reduce(totals, group=self._host.dp_cp_group)
        if self._log is None:
            return
        samples, tiles, supervised, flops, attention, tower = totals.tolist()
        assert loss is not None, "the rank that writes is on the last stage"
        rows = torch.stack(self._tables).cpu().double().sum(0)
        result = StepResult(
            loss=float(loss),
            grad_norm=float(grad_norm),
            supervised=int(supervised),
            samples=int(samples),
            tiles=int(tiles),
            failed=failed,
            flops=flops,
            flops_attention=attention,
            flops_tower=tower,
            report=averages(self._names, rows[1:, 0].tolist(), rows[1:, 1].tolist()),
        )
        self._platform.synchronize()
        seconds, saved = time.perf_counter() - self._started, seconds_of_saves()
        parts, self._saved = {**self.clock.seconds(), "save_seconds": saved - self._saved, **by_key(self._norms)}, saved
        times = StepTimes(seconds=seconds, data_seconds=self._loader.waited - self._waited, parts=parts)
        entry = self._entries.entry(step, result, times, rate=rate)
        self._log.write(entry)
        print(f"{self.recipe.name}: {_described(step, entry)}", flush=True)

    def write_evaluation(self, entry: Mapping[str, Any]) -> None:
        """Adds the line of a held-out evaluation, on the rank that writes. Megatron measures the last step twice; it is written once."""
        if self._log is None or any(all(line.get(key) == entry[key] for key in ("step", PACKS)) for line in self._log.held_out):
            return
        self._log.held_out.append(dict(entry))
        self._log.write(entry)

    def close(self) -> None:
        """No line follows."""
        if self._log is not None:
            self._log.close()


def seconds_of_saves() -> float:
    """Seconds that Megatron has saved for, by its own timer."""
    from megatron.training import get_timers

    return float(get_timers()("save-checkpoint", log_level=0).active_time())


def _described(step: int, entry: Mapping[str, Any]) -> str:
    mfu = f", MFU {entry['mfu']:.1%}" if "mfu" in entry else ""
    speed = f"{entry['tokens_per_second']:,.0f} tokens/s, {entry['tiles_per_second']:,.1f} tiles/s"
    return f"step {step} {speed}, {entry['tflops_per_device']:.4g} TFLOP/s a device{mfu}, waited {entry['data_seconds']:.2f} s for data"
