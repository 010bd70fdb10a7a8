"""Writes an imported source: every row is checked as training will check it, then data.jsonl and mixture.yaml appear."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import yaml

from mindspeed_vita.data.checking import RowProblem, sample_problems
from mindspeed_vita.data.importing.fields import Columns, Questions
from mindspeed_vita.data.importing.read import Read, open_source
from mindspeed_vita.data.sample import parse_sample
from mindspeed_vita.data.schema import plain_row
from mindspeed_vita.files.publish import whole_file

ROWS, MIXTURE = "data.jsonl", "mixture.yaml"


@dataclass(frozen=True, kw_only=True)
class Imported:
    """How an import ended."""

    what: str
    """What the source was recognised as."""
    rows: Path
    """JSONL file, one sample a line."""
    mixture: Optional[Path]
    """Mixture with that file; None: nothing was written, because of the problems."""
    media_root: str
    """What data.media_root must be."""
    num_rows: int
    num_good: int
    problems: tuple[RowProblem, ...]
    """What is wrong with single rows."""


def import_data(
    source: Union[str, Path],
    output: Union[str, Path],
    *,
    media_root: Optional[str] = None,
    questions: Sequence[str] = (),
    columns: Optional[Columns] = None,
    skip_bad: bool = False,
) -> Imported:
    """Makes data.jsonl and mixture.yaml from a table, a LLaVA file or a folder. Pictures stay where they are.

    Args:
        source: file or folder, see read.py.
        output: folder to write to; made where it is missing.
        media_root: folder that paths start from; None: the source, or its folder.
        questions: for media that come with a caption alone, in turn.
        columns: names of a table's columns; None: their usual names.
        skip_bad: write the good rows although there are bad ones; otherwise nothing is written then.

    Raises:
        ValueError: the source is nothing that can be read, holds no rows, or the output folder holds an import already.
        OSError: a file cannot be read or written.
    """
    output, name = Path(output), Path(source).resolve().stem
    present = [file for file in (ROWS, MIXTURE) if (output / file).exists()]
    if present:
        raise ValueError(f"--output {output} holds {' and '.join(present)} already; remove them or choose another folder")
    opened = open_source(Path(source), columns or Columns(), Questions(questions))
    root = media_root or str(opened.root)
    if not Path(root).is_dir():
        raise ValueError(f"--media-root {root}: no such folder")
    good, problems, num_rows = [], [], 0
    for read in opened.rows:
        num_rows += 1
        checked = _check(read, root)
        if isinstance(checked, dict):
            good.append(checked)
        else:
            problems += [RowProblem(name, read.where, reason) for reason in checked]
    if not num_rows:
        raise ValueError(f"{source}: holds no rows")
    written = good if skip_bad or not problems else []
    if written:
        output.mkdir(parents=True, exist_ok=True)
        _write(output / ROWS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in written))
        entry = {"ratio": 1, "data_paths": [str((output / ROWS).resolve())]}
        _write(output / MIXTURE, yaml.safe_dump({"dataset": {name: entry}}, sort_keys=False, allow_unicode=True))
    return Imported(
        what=opened.what,
        rows=output / ROWS,
        mixture=output / MIXTURE if written else None,
        media_root=root,
        num_rows=num_rows,
        num_good=len(good),
        problems=tuple(problems),
    )


def _check(read: Read, root: str) -> Union[dict[str, Any], list[str]]:
    """The row in the plain layout, or everything that is wrong with it."""
    if isinstance(read.row, str):
        return [read.row]
    try:
        row = plain_row(read.row, read.where)
    except ValueError as error:
        return [str(error).removeprefix(f"{read.where}: ")]
    return list(sample_problems(parse_sample(row, read.where), root)) or {name: row[name] for name in row if name != "unknown_keys"}


def _write(path: Path, text: str) -> None:
    """All of a file or nothing."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
