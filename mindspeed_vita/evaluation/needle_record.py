"""The requests of a needle test and their answers, in a file that grows: the same test goes on where a stop left off."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindspeed_vita.evaluation.needle_cases import Case
from mindspeed_vita.files.writing import naming
from mindspeed_vita.inference.request import Answer

ANSWERS = "answers.jsonl"


class NeedleRecord:
    """The file of one test: a line of settings, then a line for each request that was answered.

    Args:
        folder: where it lies; made if it is missing.
        settings: what the answers depend on: grid and checkpoint.

    Raises:
        ValueError: the file there belongs to a test with other settings, or is no such file.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = folder / ANSWERS, dict(settings)
        self.rows: dict[str, dict[str, Any]] = {}
        """By the key of the case."""
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines()
        try:
            rows = [json.loads(line) for line in lines]
            found = rows[0]["needle"] if rows else None
            keys = [row["key"] for row in rows[1:]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is no record of a needle test; choose another --output") from error
        if found is not None and found != self.settings:
            names = sorted({*found, *self.settings})
            differ = [name for name in names if found.get(name) != self.settings.get(name)]
            shown = "; ".join(f"{name} was {found.get(name)}, is {self.settings.get(name)}" for name in differ)
            raise ValueError(f"{self.path} belongs to another test ({shown}); choose another --output")
        if len(whole) < len(content):  # a stop cut the last line off
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        self.rows = dict(zip(keys, rows[1:]))

    def add(self, case: Case, answer: Answer) -> None:
        """Writes down an answer.

        Raises:
            ValueError: it is an error of the model or of a frame.
        """
        if answer.reason == "error":
            raise ValueError(f"{case.task} at {case.length} frames, depth {case.depth:g}: {answer.message}")
        row = {
            "key": case.key,
            "task": case.task,
            "length": case.length,
            "depth": case.depth,
            "blank": case.blank,
            "haystack": case.haystack.seed,
            "question": case.question,
            "expected": case.expected,
            "answer": answer.text,
            "right": case.is_right(answer.text),
            "prompt_tokens": answer.prompt_tokens,
            "cached_tokens": answer.cached_tokens,
        }
        fresh = not self.path.exists() or not self.path.stat().st_size
        with naming(self.path), self.path.open("a", encoding="ascii") as file:
            if fresh:
                file.write(json.dumps({"needle": self.settings}) + "\n")
            file.write(json.dumps(row) + "\n")
        self.rows[case.key] = row
