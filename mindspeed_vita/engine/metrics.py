"""metrics.jsonl and quarantine.jsonl: files that read as one clean run after any number of restarts."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from mindspeed_vita.config import Recipe, recipe_to_dict
from mindspeed_vita.engine.sinks import Sink, open_sinks
from mindspeed_vita.files.publish import remove_temporaries, whole_file
from mindspeed_vita.files.write_fault import named_write_fault

HELD_OUT_LOSS = "eval/loss"
"""Key of the held-out loss. The lines of evaluations have it, and no "loss"."""
STARTED = "started.json"
"""File in the run's folder with the recipe of its newest start: what is to come, which no line and no checkpoint says yet."""


def truncate(path: Path, step: int, *, run: Optional[str] = None) -> list[dict[str, Any]]:
    """Drop a run's lines of a JSONL file that lie beyond a step, and a torn last line.

    Lines of others, and what is no line of ours, stay byte for byte. Nothing is written where nothing is to go;
    where something is, a line that another run adds in that very moment can be lost.

    Args:
        path: file whose lines have a "step"; it may be absent.
        step: last step to keep.
        run: the "run" of our lines, in a file that runs may share; None where our lines have none.

    Returns:
        Our lines that are kept, parsed.

    Raises:
        OSError: the file cannot be written; names it.
    """
    if run is None:  # another run may be writing a file that runs share
        remove_temporaries(path)
    if not path.is_file():
        return []
    whole = path.read_bytes()
    kept, ours = [], []
    for line in io.BytesIO(whole):
        entry = _parse(line)
        if not line.endswith(b"\n"):  # the process was killed while writing it
            if entry is None:
                continue
            line += b"\n"
        if entry is not None and entry.get("run") == run and isinstance(entry.get("step"), int):
            if entry["step"] > step:
                continue
            ours.append(entry)
        kept.append(line)
    content = b"".join(kept)
    if content != whole:
        with named_write_fault(path), whole_file(path) as temporary:
            temporary.write_bytes(content)
    return ours


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the lines of a JSONL file that are not wanted, and what is no line of ours. The file may be absent.

    Raises:
        OSError: the file cannot be written; names it.
    """
    remove_temporaries(path)
    if not path.is_file():
        return
    whole = path.read_bytes()
    content = b"".join(line for line in io.BytesIO(whole) if (entry := _parse(line)) is not None and wanted(entry))
    if content != whole:
        with named_write_fault(path), whole_file(path) as temporary:
            temporary.write_bytes(content)


def append(path: Path, entries: list[dict[str, Any]]) -> None:
    """Add lines to a JSONL file, in one write, so that several ranks may share it.

    Raises:
        OSError: the file cannot be written; names it.
    """
    with named_write_fault(path), path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(entry) + "\n" for entry in entries))


def _parse(line: bytes) -> Optional[dict[str, Any]]:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def is_logged(step: int, recipe: Recipe) -> bool:
    """Whether a step has a line: every logging.every steps, and the first and the last one."""
    return step % recipe.logging.every == 0 or step in (1, recipe.train.steps)


def with_report(entry: Mapping[str, Any], report: Mapping[str, float]) -> dict[str, Any]:
    """A step's entry with the averages of the objective's report, each under its own name.

    Raises:
        ValueError: a name is one of the entry's.
    """
    taken = sorted(set(entry) & set(report))
    if taken:
        raise ValueError(f"the objective reports {', '.join(taken)}, which metrics.jsonl has already; choose another name")
    return {**entry, **report}


class MetricsLog:
    """Curves of one run, on the rank that writes.

    Args:
        directory: folder of the run.
        step: step the run continues from; later lines go.
        sinks: take each line too, after the file has it.
    """

    def __init__(self, directory: Path, *, step: int, sinks: Sequence[Sink] = ()) -> None:
        self.path, self._sinks = directory / "metrics.jsonl", sinks
        kept = truncate(self.path, step)
        losses = [entry["loss"] for entry in kept if "loss" in entry]
        self.held_out: list[dict[str, Any]] = [entry for entry in kept if HELD_OUT_LOSS in entry]
        """Lines of evaluations that are kept, oldest first."""
        self.first_loss: Optional[float] = losses[0] if losses else None
        self.last_loss: Optional[float] = losses[-1] if losses else None
        for sink in sinks if self.held_out else ():
            sink.begin(self.held_out[-1])

    def write(self, entry: Mapping[str, Any]) -> None:
        """Adds one line of a step; it needs "step", and "loss" or HELD_OUT_LOSS."""
        append(self.path, [dict(entry)])
        if "loss" in entry:
            self.first_loss = entry["loss"] if self.first_loss is None else self.first_loss
            self.last_loss = entry["loss"]
        for sink in self._sinks:
            sink.write(entry, evaluation=HELD_OUT_LOSS in entry)

    def close(self) -> None:
        """No line follows."""
        for sink in self._sinks:
            sink.close()


def open_log(recipe: Recipe, directory: Path, *, step: int) -> MetricsLog:
    """The curves of a run that starts, on the rank that writes, with the sinks that its recipe asks for. Writes STARTED, too.

    Args:
        recipe: the run.
        directory: its folder, which exists.
        step: step that it continues from.

    Raises:
        OSError: a file cannot be written; names it.
        ValueError: as open_sinks.
    """
    log = MetricsLog(directory, step=step, sinks=open_sinks(recipe, directory, step=step))
    path = directory / STARTED
    remove_temporaries(path)
    with named_write_fault(path), whole_file(path) as temporary:
        temporary.write_text(json.dumps({"recipe": recipe_to_dict(recipe)}, indent=1) + "\n", encoding="utf-8")
    return log
