"""The built-in training loop: data, model, optimizer, checkpoints and logs of one run, on any layout."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Optional

import torch.distributed as dist

from mindspeed_vita.checkpoint import gates, lineage
from mindspeed_vita.checkpoint.folder_lock import FolderLock
from mindspeed_vita.checkpoint.native import atomic, step_folder
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.checkpoint.native.ranks import on_first_rank
from mindspeed_vita.config import Recipe
from mindspeed_vita.engine import metrics, resuming
from mindspeed_vita.engine import optimizer as optim
from mindspeed_vita.engine.adapter_base import find_run_base
from mindspeed_vita.engine.bad_numbers import BadNumbers
from mindspeed_vita.engine.chosen_step import choose_step
from mindspeed_vita.engine.faults import TrainingDiverged, open_failed_samples
from mindspeed_vita.engine.feed import open_dataset, open_loader
from mindspeed_vita.engine.held_out_run import RunEvaluation
from mindspeed_vita.engine.module_dump import ModuleDump
from mindspeed_vita.engine.objective import build_objective
from mindspeed_vita.engine.outcome import TrainResult
from mindspeed_vita.engine.profile import ProfileWindow
from mindspeed_vita.engine.progress import Progress
from mindspeed_vita.engine.random_state import random_state, set_random_state
from mindspeed_vita.engine.resuming import NEWEST, Resume
from mindspeed_vita.engine.run_lock import held_by_first_rank, put_in_order, run_lock
from mindspeed_vita.engine.session import distributed
from mindspeed_vita.engine.step import Stepper, StepResult
from mindspeed_vita.engine.step_entry import StepEntries, StepTimes
from mindspeed_vita.engine.stopping import StopRequest
from mindspeed_vita.engine.stored_start import bring_step
from mindspeed_vita.engine.uploading import Uploads
from mindspeed_vita.engine.watchdog import Beat, WatchedSteps, watched
from mindspeed_vita.parallel.chunks import chunks_of
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.platform import Platform, get_platform


def train(
    recipe: Recipe, *, stop_at_step: Optional[int] = None, stop: Optional[StopRequest] = None, resume: Resume = NEWEST
) -> TrainResult:
    """Train a recipe to its last step, from a checkpoint in its folder if there is one.

    Args:
        recipe: the run. Every rank passes the same.
        stop_at_step: save and return after this step, as if the run went on later; the schedule stays that of the recipe.
        stop: what `stop_signals` gives; a signal then ends the run after its step. None: nobody asks it to end.
        resume: which checkpoint, and whether settings may be others than before.

    Raises:
        ValueError: a setting, the data, or a checkpoint does not fit, or another process trains in the folder; one message that says
            what to do.
        OSError: the disk is full or not writable.
        TrainingDiverged: the loss is not finite any more.
    """
    platform = get_platform()
    own, lock = not dist.is_initialized(), run_lock(recipe)
    with (
        distributed(recipe, platform) as layout,
        watched(recipe, own=own, release=partial(put_in_order, lock)) as steps,
        held_by_first_rank(lock),
    ):
        run = _Run(recipe, platform, layout, lock, resume)
        return run.train(recipe.train.steps if stop_at_step is None else stop_at_step, stop or StopRequest(), steps)


class _Run:
    """One process's part of a run."""

    def __init__(self, recipe: Recipe, platform: Platform, layout: ParallelLayout, lock: FolderLock, resume: Resume) -> None:
        # imports megatron.core: only now that the device is chosen
        from mindspeed_vita.parallel.build import build_model

        self.recipe, self.platform, self.layout, self.lock, self.resume = recipe, platform, layout, lock, resume
        self.directory = Path(recipe.checkpoint.directory)
        self.leads = dist.get_rank() == 0
        self.sizes = {"tp": layout.tp_size, "pp": layout.pp_size, "cp": layout.cp_size, "dp": layout.dp_size}
        on_first_rank(lambda: atomic.recover(self.directory))
        self.resume, fetched = bring_step(recipe, resume)
        resume_from = resuming.resume_from(recipe, self.resume)
        base = find_run_base(recipe, resume_from, None if resume_from is None else native.saved_recipe(resume_from))
        if base is not None:
            recipe = self.recipe = base.recipe
        elif resume_from is None:
            step_folder.check_start(recipe)
        self.entries = StepEntries(recipe, platform)
        self.dump = ModuleDump(recipe.debug, self.directory)
        model = build_model(recipe, layout, platform.device)  # first: what no kernel serves is refused before data is read
        self.dataset = open_dataset(recipe, layout)
        self.objective = build_objective(recipe, layout, self.dataset)
        origins: tuple[Path, ...] = ()
        self.start = ""  # where the weights come from, for people
        if base is not None:
            base.load(model)
            self.start, origins = base.describe(), base.origins
        elif resume_from is None and recipe.checkpoint.init_from:
            origins = (choose_step(recipe.checkpoint.init_from),)
            gates.check_handover(origins[0])
            self.start = f"starting from the weights of {native.load_weights(origins[0], model, config=recipe.model)}"
        self.model = optim.wrap_model(model, optim.Communication.of(recipe, platform))
        self.optimizer = optim.build_optimizer(self.model, recipe, platform)
        self.schedule = optim.build_schedule(self.optimizer, recipe.train)
        self.step, self.packs, self.saved = 0, 0, resume_from
        self.numbers = BadNumbers(recipe.health, self.directory)
        self.beat: Beat = atomic.nothing  # of the watchdog, while it looks
        self.saved_at = time.monotonic()
        self.saving = 0.0  # seconds that training stood still for saving, since the last logged step
        self.writing: Optional[native.StepWriter] = None
        known: tuple[int, ...] = ()
        if resume_from is not None:
            known = self._restore(resume_from).failed_samples
            told = [f"continuing from {resume_from} ({layout.describe()})", *([base.note] if base else [])]
            told += resuming.describe_changes(self.schedule, recipe, resume_from, step=self.step)
            aside: list[str] = []
            on_first_rank(lambda: aside.extend(resuming.set_aside(resume_from)))
            if aside:
                told.append(f"newer steps are set aside as {', '.join(aside)}: remove them where nobody needs them")
            self.start = "; ".join(told)
        self.start = "; ".join(filter(None, [*fetched, self.start]))
        self.lineage: Optional[lineage.Lineage] = None  # on the first rank
        on_first_rank(lambda: self._open_lineage(resume_from, origins))
        self.log: Optional[metrics.MetricsLog] = None
        self.evaluation: Optional[RunEvaluation] = None
        self._open_files(known)

    def _restore(self, folder: Path) -> native.TrainState:
        """Takes up a step: weights, optimizer, schedule, random states and numbers. Collective."""
        model, recipe = self.model.module, self.recipe
        parts: dict[str, Any] = {"model": model, "optimizer": self.optimizer, "recipe": recipe, "on_part": self.beat}
        state = native.load(folder, **parts, fingerprint=self.dataset.fingerprint, with_changes=self.resume.with_changes)
        self.step, self.packs = state.step, state.packs
        self.schedule = optim.build_schedule(self.optimizer, recipe.train)
        self.schedule.step(increment=state.step)
        self.numbers.restore(state)
        set_random_state(self.platform, native.load_rng(folder, self.sizes))
        return state

    def _open_files(self, known: tuple[int, ...]) -> None:
        """Logs, the record of failed samples and the held-out evaluation, as they are after `step`."""
        recipe = self.recipe
        if self.leads:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.numbers.clean_file()
            self.log = metrics.open_log(recipe, self.directory, step=self.step)
        self.failed = open_failed_samples(recipe, self.dataset, step=self.step, known=known)
        if recipe.eval.mixture:
            parts: dict[str, Any] = {"model": self.model, "failed": self.failed, "training": self.dataset, "log": self.log}
            self.evaluation = RunEvaluation(recipe, self.layout, self.platform, **parts)

    def _open_lineage(self, resume_from: Optional[Path], origins: Sequence[Path]) -> None:
        """Makes the record that each step of this run carries."""
        data = self.dataset.fingerprint
        if resume_from is None:
            self.lineage = lineage.of_beginning(self.recipe, data=data, origins=origins)
            return
        saved, before = native.saved_recipe(resume_from), lineage.of_step(resume_from)
        self.lineage = lineage.continued(before, self.recipe, step=self.step, saved=saved, data=data)

    def train(self, last: int, stop: StopRequest, steps: WatchedSteps) -> TrainResult:
        """Steps up to and including `last`, or the one in which the ranks agree to stop; that one is saved."""
        recipe, last = self.recipe, min(last, self.recipe.train.steps)
        progress = self._progress()
        self.uploads = Uploads(recipe.checkpoint, lambda line: progress.line(f"{recipe.name}: {line}") if progress else None)
        batches = self.batches = open_loader(self.dataset, recipe, self.layout, start_pack=self.packs)
        held: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer, "batches": iter(batches), "failed": self.failed}
        stepper = Stepper(recipe, self.layout, self.platform, **held, objective=self.objective, stop=stop, judge=self.numbers.judge)
        window = ProfileWindow(recipe.profile, self.platform, self.directory, dist.get_rank())
        tokens, busy = recipe.train.global_batch * recipe.data.seq_length, []
        try:
            with stop.finishing_steps(), steps() as self.beat:
                self._evaluate(progress)  # the start, or a step that a signal saved before it was measured
                while self.step < last and not stop.agreed and not self._exhausted:
                    stop.save_asked = self._save_is_late()
                    stop.writing_asked = self.writing is not None and not self.writing.written()
                    with window.step(self.step + 1), self.dump.step(self.step + 1, chunks_of(self.model)):
                        start, waited = time.perf_counter(), self.batches.waited
                        result = stepper.run(self.step + 1, lambda: self.schedule.step(increment=1))
                        self.platform.synchronize()
                        busy.append(time.perf_counter() - start)
                    self.step += 1
                    self.packs += recipe.train.global_batch
                    went_on = self._settle_numbers(result, progress)
                    if not went_on:  # the run is back at its last checkpoint
                        stepper.failed, stepper.batches = self.failed, iter(self.batches)
                        self.uploads.advance()
                        self.beat()
                        continue
                    parts = {**stepper.clock.seconds(), "save_seconds": self.saving, **stepper.module_norms()}
                    times = StepTimes(seconds=busy[-1], data_seconds=self.batches.waited - waited, parts=parts)
                    self._report(result, times, progress)
                    self.beat()
                    if not stop.writing_agreed:
                        self._finish_save()  # at once: all ranks have written
                    self.uploads.advance()
                    best = self._evaluate(progress) if not stop.agreed else False
                    ends = self.step == last or stop.agreed != 0 or self._exhausted
                    if self.step % recipe.checkpoint.save_every == 0 or stop.save_agreed or ends or best:
                        self._save()
                        if ends or not recipe.checkpoint.background:
                            self._finish_save()
                        self.beat()
        except TrainingDiverged:
            self._finish_save()  # all ranks are here: a step that is on its way to the disk is still worth having
            self.uploads.finish()
            raise
        finally:
            window.close()
            self.batches.close()
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
        if self.evaluation is None:
            return False
        self.evaluation.held_out.after_round = self.beat
        return self.evaluation.if_due(self.step, progress)

    def _settle_numbers(self, result: StepResult, progress: Optional[Progress]) -> bool:
        """Does what health.on_bad_numbers says where the step was bad; returns whether the run goes on from here.

        Raises:
            TrainingDiverged: it says stop, or too many steps were bad, or there is no checkpoint to go back to.
        """
        if not result.bad:
            self.numbers.good(result.loss, result.grad_norm)
            return True
        batch = self.recipe.train.global_batch
        bad = self.numbers.bad(self.step, result.bad, result.loss, result.grad_norm)
        self._finish_save()
        action, saved = self.numbers.action(self.step, can_roll_back=self.saved is not None), self.saved
        first = native.load_state(saved).packs if action == "roll_back" and saved is not None else self.packs - batch
        if self.leads:
            steps = range(first, self.packs, batch)
            numbers = [number for place in steps for number in self.batches.packs_of_step(place)]
            self.numbers.write(bad, action, [(number, self.dataset.samples_of(number).tolist()) for number in numbers])
        if action == "stop":
            raise TrainingDiverged(self.numbers.advice(bad, saved, self.recipe))
        if progress is not None:
            progress.line(f"{self.recipe.name}: {bad.describe()}; {self.numbers.told(action, saved)}")
        if action == "skip":
            self.numbers.skipped.append(self.step)
            return True
        assert saved is not None
        self._roll_back(saved, self.step, self.packs)
        return False

    def _roll_back(self, folder: Path, step: int, packs: int) -> None:
        """Goes back to a checkpoint, passes over the packs up to `packs`, and saves that, so that it stays so after a restart."""
        self.batches.close()
        if self.log is not None:
            self.log.close()
        optim.gather_weights(self.model)  # nothing may be on its way into the weights
        known = self._restore(folder).failed_samples
        self.packs = packs
        self.numbers.rollbacks.append(step)
        self._open_files(known)
        self.batches = open_loader(self.dataset, self.recipe, self.layout, start_pack=self.packs)
        self._save()
        self._finish_save()

    def _report(self, result: StepResult, times: StepTimes, progress: Optional[Progress]) -> None:
        if self.log is None or progress is None or result.bad:  # bad_numbers.jsonl has a bad step
            return
        # groups differ by their multiplier; the recipe's own rate is the one people look for
        rate = self.schedule.get_lr({"max_lr": self.recipe.train.lr, "min_lr": self.recipe.train.min_lr})
        entry = self.entries.entry(self.step, result, times, rate=rate, packs=self.packs)
        if metrics.is_logged(self.step, self.recipe):
            self.log.write(entry)
            self.saving = 0.0
        progress.update(entry, result.report)
        if not result.supervised:
            progress.line(f"{self.recipe.name} step {self.step}: no token was supervised, nothing was learnt")

    def _save_is_late(self) -> bool:
        """Whether checkpoint.save_minutes have passed since the last save. The first rank's clock counts: it asks, and all agree."""
        minutes = self.recipe.checkpoint.save_minutes
        return self.leads and minutes > 0 and time.monotonic() - self.saved_at >= 60 * minutes

    def _save(self) -> None:
        self.saved_at = time.monotonic()
        self._finish_save()  # one at a time, in order
        started = time.perf_counter()
        on_first_rank(self.lock.check)
        optim.gather_weights(self.model)
        state = native.TrainState(
            step=self.step,
            packs=self.packs,
            fingerprint=self.dataset.fingerprint,
            failed_samples=tuple(sorted(self.failed.ids)),
            layout=self.sizes,
            **self.numbers.state(),
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
            allowed=self.lock.check,
            lineage=self.lineage,
        )
        self.saving += time.perf_counter() - started

    def _finish_save(self) -> None:
        """Waits for the step that is being written, if there is one, until it is visible."""
        if self.writing is not None:
            started = time.perf_counter()
            if not self.recipe.checkpoint.background:
                on_first_rank(self.lock.check)
            self.saved, self.writing = self.writing.finish(), None
            self.uploads.add(self.saved)
            self.saving += time.perf_counter() - started

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
        self.uploads.finish()
        return result
