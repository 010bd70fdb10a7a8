"""What `vita data import` reads: CSV and TSV tables, LLaVA's JSON, and folders of pictures. Each reader gives rows with their place."""

from __future__ import annotations

import csv
import io
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

from mindspeed_vita.data.formats import JSON_SUFFIXES, suffix_of
from mindspeed_vita.data.importing.fields import Columns, Questions, conversation, row_of_fields
from mindspeed_vita.data.rows import iter_rows, parse_json, row_place
from mindspeed_vita.data.schema import plain_row
from mindspeed_vita.data.schema.turns import TURN_FIELDS, chat_fields
from mindspeed_vita.hf.frames import is_clutter, natural_key

TABLES = (".csv", ".tsv")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".jp2")
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".flv", ".ogv", ".wmv")
CAPTIONS = (".txt", ".caption")
EXPECTED = f"expected {', '.join((*TABLES, *JSON_SUFFIXES))} (JSON also with .gz), or a folder of pictures"
_DIRECT = (".tar", ".parquet")
NO_SUFFIX = "files without suffix"


@dataclass(frozen=True)
class Read:
    """One row, or what is wrong with it."""

    where: str
    """File and line."""
    row: Union[dict[str, Any], str]
    """A row of our schema, not checked yet, or a sentence about what is wrong."""


@dataclass(frozen=True)
class Source:
    """Something to import, recognised but not read."""

    what: str
    """In words."""
    root: Path
    """Folder that paths start from."""
    rows: Iterator[Read]


def open_source(path: Path, columns: Columns, questions: Questions) -> Source:
    """Recognises a file or folder.

    Raises:
        ValueError: nothing there, or nothing that can be read; says what can.
    """
    if path.is_dir():
        return _folder(path, columns, questions)
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder; {EXPECTED}")
    suffix = suffix_of(path)
    if suffix in _DIRECT:
        raise ValueError(f"{path}: {suffix} files need no import; name the file under data_paths of a mixture (docs/data.md)")
    if suffix in TABLES:
        return Source(f"table of {suffix[1:].upper()}", path.parent, _table(path, columns, questions))
    if suffix in JSON_SUFFIXES:
        return Source("JSON rows", path.parent, _json(path, columns, questions))
    raise ValueError(f"{path}: files with the suffix {suffix!r} are not read; {EXPECTED}")


def _table(path: Path, columns: Columns, questions: Questions) -> Iterator[Read]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); save it as CSV in UTF-8") from error
    first = text.partition("\n")[0]
    delimiter = "\t" if suffix_of(path) == ".tsv" else ";" if ";" in first and "," not in first else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: Optional[list[str]] = None
    line = 1
    try:
        for cells in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                located = columns.locate(header, str(path))
            elif len(cells) != len(header):
                advice = f"put text that contains {delimiter!r} in quotes"
                yield Read(where, f"found {len(cells)} fields, the header has {len(header)}; {advice}")
            else:
                yield _fields(where, dict(zip(header, cells)), located, questions)
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: is not CSV ({error}); check the quotes") from error
    if header is None:
        raise ValueError(f"{path}: is empty; expected a header line and one line for each picture")


def _fields(where: str, values: Mapping[str, Any], columns: Columns, questions: Questions) -> Read:
    try:
        return Read(where, row_of_fields(values, columns, questions))
    except ValueError as error:
        return Read(where, str(error))


def _json(path: Path, columns: Columns, questions: Questions) -> Iterator[Read]:
    with tempfile.TemporaryDirectory() as folder:
        _, is_array, rows = iter_rows(str(path), Path(folder) / "rows")
        for row in rows:
            where = row_place(str(path), row.place, is_array)
            try:
                values = parse_json(row.text, where)
                if not isinstance(values, Mapping):
                    raise ValueError(f"found {type(values).__name__}, expected an object with conversations")
                if set(chat_fields(values)) & set(TURN_FIELDS):
                    yield Read(where, plain_row(values, where))
                else:
                    yield Read(where, row_of_fields(values, columns.locate(values, "the object"), questions))
            except ValueError as error:
                yield Read(where, str(error).removeprefix(f"{where}: "))


def _folder(folder: Path, columns: Columns, questions: Questions) -> Source:
    top = (path for path in folder.iterdir() if path.is_file() and not is_clutter(path.name))
    tables = sorted(path for path in top if suffix_of(path) in (*TABLES, *JSON_SUFFIXES))
    if len(tables) > 1:
        raise ValueError(f"{folder}: holds {', '.join(path.name for path in tables)}; name the one to import")
    if tables:
        found = open_source(tables[0], columns, questions)
        return Source(f"{found.what} in {tables[0].name}", folder, found.rows)
    found_files = (path for path in folder.rglob("*") if path.is_file() and not is_clutter(str(path.relative_to(folder))))
    files = sorted(found_files, key=lambda path: natural_key(str(path)))
    media = [path for path in files if path.suffix.lower() in (*PICTURES, *VIDEOS)]
    texts = {path.with_suffix("") for path in files if path.suffix.lower() in CAPTIONS}
    if not media:
        raise ValueError(f"{folder}: holds no picture or video and no table; expected {', '.join((*PICTURES, *VIDEOS))}, or a table with "
                         f"{' or '.join((*TABLES, *JSON_SUFFIXES))}")  # fmt: skip
    known = {*PICTURES, *VIDEOS, *CAPTIONS}
    others = Counter(path.suffix.lower() for path in files if path.suffix.lower() not in known)
    left_out = f"; not read: {', '.join(f'{count} x {suffix or NO_SUFFIX}' for suffix, count in sorted(others.items()))}" if others else ""
    if any(path.with_suffix("") in texts for path in media):
        what, rows = f"{len(media)} pictures and videos with texts next to them", _captioned(folder, media, questions)
    elif all(path.parent != folder for path in media):
        what, rows = f"{len(media)} pictures and videos whose answer is their folder's name", _labelled(folder, media, questions)
    else:
        first = next(path for path in media if path.parent == folder)
        raise ValueError(
            f"{folder}: found pictures without captions; expected a table (captions.csv with the columns image and caption), a text file "
            f"next to each ({first.with_suffix('.txt').name} for {first.name}), or one folder of pictures for each answer"
        )
    return Source(what + left_out, folder, rows)



def _captioned(folder: Path, media: list[Path], questions: Questions) -> Iterator[Read]:
    for path in media:
        texts = [path.with_suffix(suffix) for suffix in CAPTIONS if path.with_suffix(suffix).is_file()]
        if not texts:
            yield Read(str(path), f"there is no caption in a file of the same name: no {' or '.join(CAPTIONS)} next to it")
            continue
        try:
            caption = texts[0].read_text(encoding="utf-8-sig").strip()
        except UnicodeDecodeError:
            yield Read(str(texts[0]), "is not UTF-8; save it as UTF-8 text")
            continue
        kind = "video" if path.suffix.lower() in VIDEOS else "image"
        if caption:
            yield Read(str(path), conversation(kind, str(path.relative_to(folder)), questions.next(kind), caption))
        else:
            yield Read(str(texts[0]), "is empty; expected a caption")


def _labelled(folder: Path, media: list[Path], questions: Questions) -> Iterator[Read]:
    for path in media:
        kind = "video" if path.suffix.lower() in VIDEOS else "image"
        label = path.parent.name.replace("_", " ").replace("-", " ").strip()
        yield Read(str(path), conversation(kind, str(path.relative_to(folder)), questions.next("label"), label))
