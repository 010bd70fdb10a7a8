"""Rows of JSONL files and JSON arrays, plain or gzipped, each with the place it stands at."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_vita.data.sample import Sample, parse_sample

_GZIP_MAGIC = b"\x1f\x8b"
_EXPECTED = "expected one JSON object per line, or one array, in UTF-8"
_TOO_DEEP = "JSON nested too deeply"


@dataclass(frozen=True)
class RowFile:
    """The rows of one file, undecoded: an index needs a few bytes of each, not its objects."""

    path: str
    rows: tuple[bytes, ...]
    """JSON text of each row."""
    places: tuple[int, ...]
    """Line (JSONL) or item number (array) of each row, from 1."""
    is_array: bool

    def where(self, row: int) -> str:
        """File and line of a row, for messages."""
        return f"{self.path}: item {self.places[row]}" if self.is_array else f"{self.path}:{self.places[row]}"

    def sample(self, row: int) -> Sample:
        """Parses a row.

        Raises:
            ValueError: no JSON, or not the schema; names file and line.
        """
        return parse_sample(_parse(self.rows[row], self.where(row)), self.where(row))


def read_rows(path: str | Path) -> RowFile:
    """Reads a file of samples; blank lines are skipped.

    Args:
        path: JSONL, or a JSON array (told apart by the first character); gzip is recognised by its content.

    Raises:
        ValueError: no such file, a damaged archive, or an array that is no JSON.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
        text = gzip.decompress(raw) if raw.startswith(_GZIP_MAGIC) else raw
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error}); check data_paths in the mixture") from error
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file ({error}); copy it again") from error
    text = text.removeprefix(b"\xef\xbb\xbf")
    if text.lstrip()[:1] == b"[":
        items = _parse(text, str(path))
        try:
            rows = tuple(json.dumps(item, ensure_ascii=False).encode("utf-8", "surrogatepass") for item in items)
        except RecursionError:
            raise ValueError(f"{path}: found {_TOO_DEEP}; {_EXPECTED}") from None
        return RowFile(str(path), rows, tuple(range(1, len(rows) + 1)), True)
    lines = [(number, line) for number, line in enumerate(text.split(b"\n"), start=1) if line.strip()]
    return RowFile(str(path), tuple(line for _, line in lines), tuple(number for number, _ in lines), False)


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode("utf-8", "surrogatepass"))
    except UnicodeDecodeError as error:
        found = f"bytes that are not UTF-8 ({error.reason} at byte {error.start})"
    except json.JSONDecodeError as error:
        found = f"no JSON ({error.msg} at line {error.lineno}, column {error.colno} of it)"
    except ValueError as error:  # a number of thousands of digits
        found = f"no JSON ({error})"
    except RecursionError:
        found = _TOO_DEEP
    raise ValueError(f"{where}: found {found}; {_EXPECTED}")
