"""The built-in training loop: data, model, optimizer, checkpoints and logs of one run, on any layout."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Iterator, Optional

import torch.distributed as dist

from mindspeed_vita.checkpoint import gates, lineage
from mindspeed_vita.checkpoint.folder_lock import RUN_LOCK, FolderLock
from mindspeed_vita.checkpoint.gates import Gate
from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.checkpoint.native.ranks import gather, on_first_rank
from mindspeed_vita.config import Recipe
from mindspeed_vita.engine import metrics
from mindspeed_vita.engine import optimizer as optim
from mindspeed_vita.engine.adapter_base import find_run_base
from mindspeed_vita.engine.chosen_step import choose_step
from mindspeed_vita.engine.faults import TrainingDiverged, open_failed_samples
from mindspeed_vita.engine.feed import open_dataset, open_loader
from mindspeed_vita.engine.held_out_run import RunEvaluation
from mindspeed_vita.engine.objective import build_objective
from mindspeed_vita.engine.progress import Progress
from mindspeed_vita.engine.random_state import random_state, set_random_state
from mindspeed_vita.engine.session import distributed
from mindspeed_vita.engine.step import Stepper, StepResult
from mindspeed_vita.engine.stopping import StopRequest
from mindspeed_vita.engine.work import peak_of, speeds
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.platform import Platform, get_platform


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended."""

    step: int
    """Steps done."""
    first_loss: Optional[float]
    """Loss of the run's first step (rank 0 remembers it over restarts)."""
    last_loss: Optional[float]
    tokens_per_second: float
    """Mean over this process's steps but the first, all ranks together; 0 when it made none."""
    checkpoint: Path
    """The step folder written last."""
    peak_memory: int
    """Highest use of any rank, bytes."""
    layout: str
    """tp, pp, cp, dp."""
    stopped_by: int
    """Number of the signal that ended the run after `step`, which is saved; 0: the run reached the step it was to reach."""
    held_out: tuple[tuple[int, float], ...] = ()
    """(step, held-out loss) of every evaluation, those before a restart too."""
    best: Optional[int] = None
    """Step with the lowest held-out loss."""
    stopped_early: bool = False
    """eval.patience ended the run before train.steps."""
    gate: Optional[Gate] = None
    """That of the held-out loss, where the run ended and eval.gate sets a bound."""


def train(recipe: Recipe, *, stop_at_step: Optional[int] = None, stop: Optional[StopRequest] = None) -> TrainResult:
    """Train a recipe to its last step, from the newest checkpoint in its folder if there is one.

    Args:
        recipe: the run. Every rank passes the same.
        stop_at_step: save and return after this step, as if the run went on later; the schedule stays that of the recipe.
        stop: what `stop_signals` gives; a signal then ends the run after its step. None: nobody asks it to end.

    Raises:
        ValueError: a setting, the data, or a checkpoint does not fit, or another process trains in the folder; one message that says
            what to do.
        OSError: the disk is full or not writable.
        TrainingDiverged: the loss is not finite any more.
    """
    platform = get_platform()
    with distributed(recipe, platform) as layout, _locked(Path(recipe.checkpoint.directory), recipe.name) as lock:
        run = _Run(recipe, platform, layout, lock)
        return run.train(recipe.train.steps if stop_at_step is None else stop_at_step, stop or StopRequest())


@contextmanager
def _locked(directory: Path, name: str) -> Iterator[FolderLock]:
    """The lock of the run's folder, which rank 0 holds for all ranks."""
    advice = "choose another checkpoint.directory, or wait"
    lock = FolderLock(directory / RUN_LOCK, folder=directory, work=f"vita train ({name})", advice=advice)
    try:
        on_first_rank(lock.acquire)
        yield lock
    finally:
        lock.release()  # does nothing on the other ranks


class _Run:
    """One process's part of a run."""

    def __init__(self, recipe: Recipe, platform: Platform, layout: ParallelLayout, lock: FolderLock) -> None:
        # imports megatron.core: only now that the device is chosen
        from mindspeed_vita.parallel.build import build_model

        self.recipe, self.platform, self.layout, self.lock = recipe, platform, layout, lock
        self.directory = Path(recipe.checkpoint.directory)
        self.leads = dist.get_rank() == 0
        # the table is of bf16
        self.peak = peak_of(platform.device_name(), recipe.logging.peak_tflops) if recipe.train.precision == "bf16" else None
        self.sizes = {"tp": layout.tp_size, "pp": layout.pp_size, "cp": layout.cp_size, "dp": layout.dp_size}
        resume_from = self._resume_from()
        base = find_run_base(recipe, resume_from, None if resume_from is None else native.saved_recipe(resume_from))
        if base is not None:
            recipe = self.recipe = base.recipe
        model = build_model(recipe, layout, platform.device)  # first: what no kernel serves is refused before data is read
        self.dataset = open_dataset(recipe, layout)
        self.objective = build_objective(recipe, layout, self.dataset)
        origins: tuple[Path, ...] = ()
        self.start = ""  # where the weights come from, for people
        if base is not None:
            base.load(model)
            self.start, origins = base.describe(), base.origins
        elif resume_from is None and recipe.checkpoint.init_from:
            origins = (choose_step(Path(recipe.checkpoint.init_from)),)
            gates.check_handover(origins[0])
            self.start = f"starting from the weights of {native.load_weights(origins[0], model, config=recipe.model)}"
        self.model = optim.wrap_model(model, optim.Communication.of(recipe, platform))
        self.optimizer = optim.build_optimizer(self.model, recipe, platform)
        self.schedule = optim.build_schedule(self.optimizer, recipe.train)
        self.step, self.packs, self.saved = 0, 0, resume_from
        self.writing: Optional[native.StepWriter] = None
        known: tuple[int, ...] = ()
        if resume_from is not None:
            state = native.load(resume_from, model=model, optimizer=self.optimizer, recipe=recipe, fingerprint=self.dataset.fingerprint)
            self.step, self.packs, known = state.step, state.packs, state.failed_samples
            self.schedule.step(increment=state.step)
            self.start = f"continuing from {resume_from} ({layout.describe()}){f'; {base.note}' if base else ''}"
            steps_before = native.saved_recipe(resume_from)["train"]["steps"]
            if steps_before != recipe.train.steps:
                note = optim.describe_new_length(self.schedule, recipe.train, steps_before=steps_before, step=state.step)
                self.start = f"{self.start}; {note}"
            set_random_state(platform, native.load_rng(resume_from, self.sizes))
        self.lineage: Optional[lineage.Lineage] = None  # on the first rank
        on_first_rank(lambda: self._open_lineage(resume_from, origins))
        self.log: Optional[metrics.MetricsLog] = None
        if self.leads:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.log = metrics.MetricsLog(self.directory, step=self.step, tensorboard=recipe.logging.tensorboard)
        self.failed = open_failed_samples(recipe, self.dataset, step=self.step, known=known)
        self.evaluation: Optional[RunEvaluation] = None
        if recipe.eval.mixture:
            parts: dict[str, Any] = {"model": self.model, "failed": self.failed, "training": self.dataset, "log": self.log}
            self.evaluation = RunEvaluation(recipe, layout, platform, **parts)

    def _resume_from(self) -> Optional[Path]:
        newest = native.latest(self.directory)
        seen = set(gather(newest.name if newest else "none"))
        if len(seen) > 1:
            raise ValueError(
                f"processes see different newest checkpoints in {self.directory} ({', '.join(sorted(seen))}); "
                f"checkpoint.directory must lie on a file system that all hosts share"
            )
        if newest is not None and not self.recipe.checkpoint.resume:
            raise ValueError(
                f"checkpoint.resume is false, but {self.directory} holds {newest.name}; set it to true to continue, "
                f"or choose another checkpoint.directory"
            )
        return newest

    def _open_lineage(self, resume_from: Optional[Path], origins: Sequence[Path]) -> None:
        """Makes the record that each step of this run carries."""
        data = self.dataset.fingerprint
        if resume_from is None:
            self.lineage = lineage.of_beginning(self.recipe, data=data, origins=origins)
            return
        saved, before = native.saved_recipe(resume_from), lineage.of_step(resume_from)
        self.lineage = lineage.continued(before, self.recipe, step=self.step, saved=saved, data=data)

    def train(self, last: int, stop: StopRequest) -> TrainResult:
        """Steps up to and including `last`, or the one in which the ranks agree to stop; that one is saved."""
        recipe, last = self.recipe, min(last, self.recipe.train.steps)
        progress = self._progress()
        batches = open_loader(self.dataset, recipe, self.layout, start_pack=self.packs)
        stepper = Stepper(
            recipe,
            self.layout,
            self.platform,
            model=self.model,
            optimizer=self.optimizer,
            batches=iter(batches),
            failed=self.failed,
            objective=self.objective,
            stop=stop,
        )
        tokens, busy = recipe.train.global_batch * recipe.data.seq_length, []
        try:
            with stop.finishing_steps():
                self._evaluate(progress)  # the start, or a step that a signal saved before it was measured
                while self.step < last and not stop.agreed and not self._exhausted:
                    start, waited = time.perf_counter(), batches.waited
                    result = stepper.run(self.step + 1, lambda: self.schedule.step(increment=1))
                    self.platform.synchronize()
                    busy.append(time.perf_counter() - start)
                    self.step += 1
                    self.packs += recipe.train.global_batch
                    self._report(result, busy[-1], tokens / busy[-1], batches.waited - waited, progress)
                    self._publish(wait=False)
                    best = self._evaluate(progress) if not stop.agreed else False
                    ends = self.step == last or stop.agreed != 0 or self._exhausted
                    if self.step % recipe.checkpoint.save_every == 0 or ends or best:
                        self._save()
                        self._publish(wait=not recipe.checkpoint.background or ends)
        except TrainingDiverged:
            self._publish(wait=True)  # all ranks are here: a step that is on its way to the disk is still worth having
            raise
        finally:
            batches.close()
            if progress is not None:
                progress.close()
            if self.log is not None:
                self.log.close()
        return self._finish(tokens, busy, stop)

    @property
    def _exhausted(self) -> bool:
        return self.evaluation is not None and self.evaluation.exhausted

    def _evaluate(self, progress: Optional[Progress]) -> bool:
        """Measures the held-out loss where it is due; returns whether the step is to be saved as the best one."""
        return self.evaluation is not None and self.evaluation.if_due(self.step, progress)

    def _report(self, result: StepResult, seconds: float, speed: float, waited: float, progress: Optional[Progress]) -> None:
        if self.log is None or progress is None:
            return
        # groups differ by their multiplier; the recipe's own rate is the one people look for
        rate = self.schedule.get_lr({"max_lr": self.recipe.train.lr, "min_lr": self.recipe.train.min_lr})
        entry: dict[str, Any] = {"step": self.step, **asdict(result), "lr": rate, "seconds": seconds, "tokens_per_second": speed}
        entry.update(data_seconds=waited, packs=self.packs, memory=self.platform.memory().peak)
        entry.update(speeds(result.flops, seconds, dist.get_world_size(), self.peak))
        entry = metrics.with_report(entry, entry.pop("report"))
        if self.step % self.recipe.logging.every == 0 or self.step in (1, self.recipe.train.steps):
            self.log.write(entry)
        progress.update(entry, result.report)
        if not result.supervised:
            progress.line(f"{self.recipe.name} step {self.step}: no token was supervised, nothing was learnt")

    def _save(self) -> None:
        self._publish(wait=True)  # one at a time, in order
        on_first_rank(self.lock.check)
        optim.gather_weights(self.model)
        state = native.TrainState(
            step=self.step,
            packs=self.packs,
            fingerprint=self.dataset.fingerprint,
            failed_samples=tuple(sorted(self.failed.ids)),
            layout=self.sizes,
        )
        self.writing = native.start_save(
            self.directory,
            state,
            model=self.model.module,
            optimizer=self.optimizer,
            recipe=self.recipe,
            rng=random_state(self.platform),
            keep=self.recipe.checkpoint.keep,
            background=self.recipe.checkpoint.background,
            lineage=self.lineage,
        )

    def _publish(self, wait: bool) -> None:
        """Makes the step that is being written visible, if it is all written or is to be waited for."""
        if self.writing is not None and (wait or self.writing.written()):
            on_first_rank(self.lock.check)
            self.saved, self.writing = self.writing.finish(), None

    def _progress(self) -> Optional[Progress]:
        if not self.leads:
            return None
        recipe = self.recipe
        every = max(recipe.logging.every, recipe.train.steps // 20)
        progress = Progress(recipe.name, steps=recipe.train.steps, done=self.step, bar=recipe.logging.progress, every=every)
        progress.line(f"{recipe.name}: {self.dataset.describe()}")
        for line in self.evaluation.describe() if self.evaluation else ():
            progress.line(f"{recipe.name}: {line}")
        if self.start:
            progress.line(f"{recipe.name}: {self.start}")
        return progress

    def _finish(self, tokens: int, busy: list[float], stop: StopRequest) -> TrainResult:
        peaks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(peaks, self.platform.memory().peak)
        warm = busy[1:] or busy
        assert self.saved is not None and atomic.step_of(self.saved) == self.step
        early, watch = self._exhausted and self.step < self.recipe.train.steps, self.evaluation.watch if self.evaluation else None
        ended = early or self.step == self.recipe.train.steps
        result = TrainResult(
            step=self.step,
            first_loss=self.log.first_loss if self.log else None,
            last_loss=self.log.last_loss if self.log else None,
            tokens_per_second=tokens * len(warm) / sum(warm) if warm else 0.0,
            checkpoint=self.saved,
            peak_memory=max(peaks),
            layout=self.layout.describe(),
            stopped_by=stop.agreed,
            held_out=tuple(watch.losses.items()) if watch else (),
            best=watch.best if watch else None,
            stopped_early=early,
            gate=self.evaluation.finish(self.step) if self.evaluation and ended else None,
        )
        return result
