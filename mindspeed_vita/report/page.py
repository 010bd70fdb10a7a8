"""The page of `vita report`: one HTML file without scripts, which loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

from mindspeed_vita.files.publish import whole_file
from mindspeed_vita.files.write_fault import named_write_fault
from mindspeed_vita.report.chart import Series, figure, text
from mindspeed_vita.report.run_files import RunFiles
from mindspeed_vita.report.tables import bad_steps, failed_samples, overview, settings_that_differ, stages

_STYLE = Path(__file__).with_name("style.css")
_GIB = 2.0**30
_PLACED = (
    *("loss", "tokens_per_second", "seconds", "data_seconds", "memory", "grad_norm", "lr"),
    *("supervised", "supervised_share", "samples", "failed", "packs"),
)
"""Keys that have a chart or a table of their own, or that say nothing as a curve."""
_WORK = {
    "tflops_per_device": "TFLOP/s of each device",
    "mfu": "MFU",
    "flops": "Work of a step, FLOP",
    "flops_attention": "Work of a step, attention, FLOP",
    "flops_tower": "Work of a step, vision tower, FLOP",
}
"""Titles of the keys of engine/work.py, in the order of the page."""
Names = Mapping[str, str]
"""What a run is called on the page, by its folder."""


def write_page(runs: Sequence[RunFiles], path: Path) -> None:
    """Writes the page.

    Args:
        runs: read before; at least one, in the order of the page.
        path: the file; one that is there is replaced.

    Raises:
        ValueError: no run has logged a step.
        OSError: the file cannot be written; names it.
    """
    if not any(run.steps or run.evaluations for run in runs):
        folders = ", ".join(str(run.folder) for run in runs)
        notes = "".join(f"; {note}" for run in runs for note in run.notes)
        raise ValueError(f"{folders}: no step was logged in metrics.jsonl; expected the folder of a run that made a step{notes}")
    content = page(runs)
    with named_write_fault(path), whole_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def page(runs: Sequence[RunFiles]) -> str:
    """The page as HTML."""
    names = names_of(runs)
    title = " · ".join(text(name) for name in names.values())
    notes = "".join(f'<p class="note">{text(note)}</p>' for run in runs for note in run.notes)
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    sections = {
        "Runs compared" if len(runs) > 1 else "Run": overview(runs, names),
        "Loss": _grid(_losses(runs, names)),
        "Loss by source": _grid(
            [
                *_each(runs, names, "loss/", kind="Loss", of="source", smooth=True),
                *_each(runs, names, "eval/loss/", kind="Held-out loss", of="source"),
            ]
        ),
        "Throughput": _grid(_throughput(runs, names)),
        "Waits": _grid(_waits(runs, names)),
        "Memory": _grid([_one(runs, names, "memory", "Highest use of rank 0, GiB", per=_GIB)]),
        "Optimisation": _grid(_optimisation(runs, names)),
        "Other numbers": _grid(_others(runs, names)),
        "Stage hand-offs": stages(runs, names),
        "Bad steps": bad_steps(runs, names),
        "Failed samples": failed_samples(runs, names),
        "Settings that differ": settings_that_differ(runs, names),
    }
    body = "".join(f"<section><h2>{heading}</h2>{content}</section>" for heading, content in sections.items() if content)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>vita report: '
        f'{title}</title><meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<style>{_STYLE.read_text(encoding='utf-8')}</style></head><body><h1>{title}</h1>"
        f'<p class="soft">Written by vita report, {made}.</p>{notes}<main>{body}</main></body></html>\n'
    )


def names_of(runs: Sequence[RunFiles]) -> dict[str, str]:
    """The name of each run; its folder too where two have one name."""
    names = [run.name for run in runs]
    return {str(run.folder): run.name if names.count(run.name) == 1 else f"{run.name} ({run.folder})" for run in runs}


def _grid(figures: Sequence[str]) -> str:
    drawn = "".join(figures)
    return f'<div class="charts">{drawn}</div>' if drawn else ""


def _one(
    runs: Sequence[RunFiles], names: Names, key: str, title: str, *, per: float = 1.0, smooth: bool = False, logarithmic: bool = False
) -> str:
    """One key of all runs."""
    series = [
        Series(names[str(run.folder)], [(step, value / per) for step, value in run.curve(key)], colour=place)
        for place, run in enumerate(runs)
    ]
    return figure(title, series, smooth=smooth, logarithmic=logarithmic)


def _all_keys(runs: Sequence[RunFiles]) -> list[str]:
    return sorted({key for run in runs for key in run.keys()})


def _each(runs: Sequence[RunFiles], names: Names, prefix: str, *, kind: str, of: str, smooth: bool = False) -> list[str]:
    """What lies under a prefix: in one chart for one run, in a chart for each name where runs are compared."""
    keys = [key for key in _all_keys(runs) if key.startswith(prefix)]
    if len(runs) > 1:
        return [_one(runs, names, key, f"{kind}, {key.removeprefix(prefix)}", smooth=smooth, logarithmic=True) for key in keys]
    series = [Series(key.removeprefix(prefix), runs[0].curve(key)) for key in keys]
    return [figure(f"{kind} of each {of}", series, smooth=smooth, logarithmic=True)]


def _losses(runs: Sequence[RunFiles], names: Names) -> list[str]:
    notes = []
    for run in runs:
        bad = run.not_finite("loss")
        if bad:
            shown = ", ".join(f"{step:,}" for step in bad[:10]) + (", ..." if len(bad) > 10 else "")
            notes.append(f"{names[str(run.folder)]}: the loss of {len(bad):,} logged steps is not finite (step {shown}).")
    series = [Series(names[str(run.folder)], run.curve("loss"), colour=place) for place, run in enumerate(runs)]
    training = figure("Loss (thick: running mean)", series, smooth=True, logarithmic=True, note=" ".join(notes))
    held_out = _one(runs, names, "eval/loss", "Held-out loss", logarithmic=True)
    return [training, held_out, _one(runs, names, "eval/accuracy", "Held-out token accuracy")]


def _throughput(runs: Sequence[RunFiles], names: Names) -> list[str]:
    titles = {"tokens_per_second": "Tokens per second, all ranks", "tiles_per_second": "Tiles per second, all ranks", **_WORK}
    found = _all_keys(runs)
    others = [key for key in found if key.endswith("_per_second") and key not in titles and not key.startswith("eval/")]
    return [_one(runs, names, key, titles.get(key, key)) for key in (*titles, *others) if key in found]


def _waits(runs: Sequence[RunFiles], names: Names) -> list[str]:
    titles = {
        "seconds": "Whole step",
        "data_seconds": "Waiting for data",
        "forward_seconds": "Forward",
        "backward_seconds": "Backward, with waits for other stages",
        "exchange_seconds": "All-to-alls, forward and backward",
        "optimizer_seconds": "Optimizer",
        "save_seconds": "Saving",
    }
    found = [key for key in _all_keys(runs) if (key == "seconds" or key.endswith("_seconds")) and "/" not in key]
    keys = [key for key in titles if key in found] + [key for key in found if key not in titles]
    if len(runs) > 1:
        return [_one(runs, names, key, f"{titles.get(key, key)}, seconds") for key in keys]
    return [figure("Seconds of a step", [Series(titles.get(key, key), runs[0].curve(key)) for key in keys])]


def _optimisation(runs: Sequence[RunFiles], names: Names) -> list[str]:
    share = [Series(names[str(run.folder)], _supervised_share(run), colour=place) for place, run in enumerate(runs)]
    return [
        _one(runs, names, "grad_norm", "Gradient norm", logarithmic=True),
        *_each(runs, names, "grad_norm/", kind="Gradient norm", of="module"),
        _one(runs, names, "lr", "Learning rate"),
        *_each(runs, names, "lr/", kind="Learning rate", of="module that has its own"),
        figure("Supervised tokens, share of all", share),
    ]


def _supervised_share(run: RunFiles) -> list[tuple[float, float]]:
    """In lines of earlier versions, which lack it, a step's tokens are those of its speed and its seconds."""
    told = run.curve("supervised_share")
    if told:
        return told
    seconds, speed = dict(run.curve("seconds")), dict(run.curve("tokens_per_second"))
    tokens = {step: speed[step] * seconds[step] for step in seconds if step in speed}
    return [(step, count / tokens[step]) for step, count in run.curve("supervised") if tokens.get(step, 0) >= 1]


def _others(runs: Sequence[RunFiles], names: Names) -> list[str]:
    drawn = (*_PLACED, *_WORK)
    keys = [key for key in _all_keys(runs) if key not in drawn and not key.startswith(("eval/", "loss/", "grad_norm/", "lr/"))]
    keys = [key for key in keys if not (key.endswith(("_per_second", "_seconds")) and "/" not in key)]
    return [_one(runs, names, key, key) for key in keys]
