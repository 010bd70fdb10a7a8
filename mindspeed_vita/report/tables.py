"""The tables of the page: runs side by side, hand-offs, gates, failed samples, settings."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from mindspeed_vita.checkpoint.lineage import tree
from mindspeed_vita.checkpoint.native.step_folder import flat
from mindspeed_vita.data.budget import kind_of
from mindspeed_vita.report.chart import Series, figure, shown, table, text
from mindspeed_vita.report.handoffs import hand_offs, mean, offsets
from mindspeed_vita.report.json_lines import Entry, finite
from mindspeed_vita.report.run_files import RunFiles

_MOST_SAMPLES = 100
"""Failed samples that are listed for each run; all are counted."""
_MOST_PACKS = 8
"""Packs of a bad step that are listed; the file names all."""
_NOTHING = "-"
DONE = {"stop": "the run ended", "skip": "its update was left out", "roll_back": "the run went back to its last checkpoint"}
"""What an action of bad_numbers.jsonl means."""


def overview(runs: Sequence[RunFiles], names: Mapping[str, str]) -> str:
    """A line for each run."""
    head = ("run", "step", "of", "first loss", "last loss (mean of 10)", "lowest held-out loss", "tokens/s (median)", "step, s (median)")
    rows: list[Sequence[object]] = [(*head, "waiting for data", "memory, GiB", "failed samples", "saved steps")]
    for run in runs:
        losses = [loss for _, loss in run.curve("loss")]
        held_out = min(((loss, step) for step, loss in run.curve("eval/loss")), default=None)
        seconds, speeds = [value for _, value in run.curve("seconds")], [value for _, value in run.curve("tokens_per_second")]
        memory = [value for _, value in run.curve("memory")]
        rows.append(
            (
                names[str(run.folder)],
                f"{run.steps[-1]['step']:,}" if run.steps else _NOTHING,
                _NOTHING if run.last_step is None else f"{run.last_step:,}",
                shown(losses[0]) if losses else _NOTHING,
                _or_nothing(mean(losses[-10:])),
                _NOTHING if held_out is None else f"{shown(held_out[0])} at step {held_out[1]:,.0f}",
                shown(statistics.median(speeds)) if speeds else _NOTHING,
                shown(statistics.median(seconds)) if seconds else _NOTHING,
                _NOTHING if (waiting := waiting_share(run)) is None else f"{waiting:.1%}",
                f"{max(memory) / 2**30:,.2f}" if memory else _NOTHING,
                f"{len(run.failed):,}",
                ", ".join(f"{step:,}" for step in run.saved[-3:]) or _NOTHING,
            )
        )
    return table(rows)


def waiting_share(run: RunFiles) -> float | None:
    """Share of the time of the logged steps in which rank 0 waited for data; None: it is not known."""
    total = sum(value for _, value in run.curve("seconds"))
    waited = run.curve("data_seconds")
    return sum(value for _, value in waited) / total if waited and total > 0 else None


def stages(runs: Sequence[RunFiles], names: Mapping[str, str]) -> str:
    """Hand-offs among the runs, their gates, what the pipeline noted, and where each run's weights come from."""
    found = hand_offs(runs)
    parts = []
    if found:
        rows: list[Sequence[object]] = [("from", "at step", "to", "loss before (mean of 10)", "loss after (mean of 10)")]
        for one in found:
            before, after = one.losses
            ends = (names[str(one.before.folder)], f"{one.step:,}", names[str(one.after.folder)])
            rows.append((*ends, _or_nothing(before), _or_nothing(after)))
        parts.append(table(rows))
        ahead = offsets(runs, found)
        series = [
            Series(names[str(run.folder)], [(step + ahead[str(run.folder)], loss) for step, loss in run.curve("loss")], colour=place)
            for place, run in enumerate(runs)
        ]
        chart = figure("Loss, each run after the one that it starts from", series, smooth=True, logarithmic=True)
        parts.append(f'<div class="charts">{chart}</div>')
    gates = [(names[str(run.folder)], step, gate.describe(), gate.detail) for run in runs for step, gate in run.gates]
    if gates:
        parts.append(table([("run", "step", "gate", "measured on"), *gates]))
    done = [(names[str(run.folder)], run.pipeline.get("step", ""), *item) for run in runs for item in _done(run).items()]
    if done:
        parts.append(table([("run", "step", "the pipeline ended this well", "when"), *done]))
    for run in runs:
        if run.lineage is not None:
            lines = "\n".join(text(line) for line in tree(run.lineage))
            told = f"Where the weights of {text(names[str(run.folder)])} come from"
            parts.append(f"<details><summary>{told}</summary><pre>{lines}</pre></details>")
    return "".join(parts)


def _done(run: RunFiles) -> Mapping[str, object]:
    found = run.pipeline.get("done")
    return found if isinstance(found, Mapping) else {}


def failed_samples(runs: Sequence[RunFiles], names: Mapping[str, str]) -> str:
    """Counts by source and kind, and the newest lines of each run."""
    parts = []
    for run in runs:
        failed = run.failed
        if not failed:
            continue
        kinds = Counter((str(line.get("source", _NOTHING)), kind_of(line["reason"])) for line in failed)
        counts = [(f"{number:,}", source, kind) for (source, kind), number in kinds.most_common(_MOST_SAMPLES)]
        keys = ("step", "sample_id", "source", "path", "reason")
        # what the index left out has "where" in place of a sample and its file
        lines = [[line.get(key, line.get("where", "") if key == "path" else "") for key in keys] for line in failed[-_MOST_SAMPLES:]]
        listed = f"{len(failed):,} samples" if len(failed) <= _MOST_SAMPLES else f"The last {len(lines)} of {len(failed):,} samples"
        parts.append(f"<h3>{text(names[str(run.folder)])}</h3>{table([('samples', 'source', 'kind of reason'), *counts])}")
        rows = table([("step", "sample", "source", "file", "reason"), *lines])
        parts.append(f"<details><summary>{listed}</summary>{rows}</details>")
    return "".join(parts)


def bad_steps(runs: Sequence[RunFiles], names: Mapping[str, str]) -> str:
    """Steps whose loss or gradient norm went bad, and what was done about them."""
    head = ("run", "step", "what was bad", "loss", "usually", "gradient norm", "usually", "what was done", "packs")
    rows: list[Sequence[object]] = []
    for run in runs:
        for line in run.bad[-_MOST_SAMPLES:]:
            loss, usual_loss, norm, usual_norm = (
                shown(value) if (value := finite(line, key)) is not None else line.get(key, _NOTHING)
                for key in ("loss", "usual_loss", "grad_norm", "usual_grad_norm")
            )
            values = (loss, usual_loss, norm, usual_norm)
            done = DONE.get(line["action"], line["action"])
            rows.append((names[str(run.folder)], f"{line['step']:,}", line["why"], *values, done, _packs(line)))
    return table([head, *rows]) if rows else ""


def _packs(line: Entry) -> str:
    found = line.get("packs")
    numbers = [pack.get("pack", "?") for pack in found if isinstance(pack, Mapping)] if isinstance(found, Sequence) else []
    told = ", ".join(map(str, numbers[:_MOST_PACKS]))
    return f"{told} and {len(numbers) - _MOST_PACKS} more" if len(numbers) > _MOST_PACKS else told


def settings_that_differ(runs: Sequence[RunFiles], names: Mapping[str, str]) -> str:
    """Keys of the recipes whose values are not the same in all runs whose recipe is known."""
    known = [run for run in runs if run.recipe]
    recipes = [flat(run.recipe) for run in known]
    keys = sorted({key for recipe in recipes for key in recipe})
    rows = [(key, *(recipe.get(key, _NOTHING) for recipe in recipes)) for key in keys]
    rows = [row for row in rows if any(value != row[1] for value in row[2:])]
    return table([("key", *(names[str(run.folder)] for run in known)), *rows]) if rows else ""


def _or_nothing(value: float | None) -> str:
    return _NOTHING if value is None else shown(value)
