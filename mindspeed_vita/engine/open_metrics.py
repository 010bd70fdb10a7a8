"""The newest numbers of a run as an OpenMetrics text file, which Prometheus' node exporter collects (--collector.textfile)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindspeed_vita.files.publish import whole_file
from mindspeed_vita.files.write_fault import named_write_fault

_PLAIN = re.compile(r"(eval/)?[a-zA-Z_][a-zA-Z0-9_]*")
_OF_NAME = re.compile(r"((?:eval/)?[a-zA-Z_][a-zA-Z0-9_]*)/(.+)", re.DOTALL)


class OpenMetrics:
    """The file of one run, written anew with each line of metrics.jsonl.

    "grad_norm" becomes vita_grad_norm. A key with a name behind a slash, such as "loss/ocr", becomes vita_loss_by_name{name="ocr"}.
    Any other key becomes vita_number{name=KEY}. Every sample has the label "run".

    Args:
        path: the file.
        run: name of the run.
    """

    def __init__(self, path: Path, run: str) -> None:
        self.path, self._run = path, run
        self._step: Mapping[str, Any] = {}
        self._evaluation: Mapping[str, Any] = {}

    def begin(self, evaluation: Mapping[str, Any]) -> None:
        """Remembers the newest evaluation of the run so far, for the lines of steps that follow."""
        self._remember(evaluation)

    def write(self, entry: Mapping[str, Any], *, evaluation: bool) -> None:
        """Replaces the file by one with this entry, and with the last one of the other kind.

        Args:
            entry: line of metrics.jsonl.
            evaluation: it is of the held-out loss, and not of a training step.

        Raises:
            OSError: the file cannot be written; names it.
        """
        if evaluation:
            self._remember(entry)
        else:
            self._step = dict(entry)
        with named_write_fault(self.path), whole_file(self.path) as temporary:
            temporary.write_text(exposition({**self._evaluation, **self._step}, self._run), encoding="utf-8", errors="replace")

    def _remember(self, evaluation: Mapping[str, Any]) -> None:
        self._evaluation = {key: value for key, value in evaluation.items() if key != "step"} | {"eval/step": evaluation["step"]}

    def close(self) -> None:
        """Nothing: the file is whole after each line."""


def exposition(entry: Mapping[str, Any], run: str) -> str:
    """The numbers of an entry in OpenMetrics format; all are gauges.

    Source: the OpenMetrics specification 1.0, sections "Escaping" and "Numbers".
    """
    families: dict[str, list[str]] = {}
    for key, value in entry.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        family, labels = _place(key)
        written = "".join(f'{label}="{_escaped(text)}",' for label, text in {"run": run, **labels}.items()).rstrip(",")
        families.setdefault(family, []).append(f"{family}{{{written}}} {_number(value)}")
    lines = [line for family, samples in families.items() for line in (f"# TYPE {family} gauge", *samples)]
    return "\n".join([*lines, "# EOF", ""])


def _place(key: str) -> tuple[str, dict[str, str]]:
    if _PLAIN.fullmatch(key):
        return f"vita_{key.replace('/', '_')}", {}
    found = _OF_NAME.fullmatch(key)
    if found:
        return f"vita_{found[1].replace('/', '_')}_by_name", {"name": found[2]}
    return "vita_number", {"name": key}


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return repr(value) if math.isfinite(value) else ("+Inf" if value > 0 else "-Inf")
