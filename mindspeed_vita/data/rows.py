"""Rows of JSONL files and JSON arrays, plain or gzipped, each with the place it stands at: streamed once, later read by offset."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mindspeed_vita.data.formats import Adapter
from mindspeed_vita.data.open_files import OpenFiles
from mindspeed_vita.data.sample import Sample, parse_sample
from mindspeed_vita.files.publish import whole_file

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HEAD = 1 << 12
"""Bytes that are looked at for the first character."""
_LONGEST_ROW = 256 << 20
"""Bytes of one row, decompressed; more is no sample but an archive made to fill the memory."""
_LARGEST_ARRAY = 16 << 30
"""Bytes of a JSON array, decompressed; it is parsed as a whole."""
_EXPECTED = "expected one JSON object per line, or one array, in UTF-8"
_TOO_DEEP = "JSON nested too deeply"
_PUT_BACK = "put the indexed file back and resume, or start the run again, which indexes the new one"


class Hash(Protocol):
    """What hashlib makes."""

    def update(self, data: bytes, /) -> None:
        """Adds bytes."""


@dataclass(frozen=True)
class Row:
    """One row, unparsed."""

    offset: int
    """Of its first byte."""
    place: int
    """Line (JSONL) or item (array), from 1."""
    text: bytes


def row_place(path: str, place: int, is_array: bool) -> str:
    """File and line, for messages."""
    return f"{path}: item {place}" if is_array else f"{path}:{place}"


def iter_rows(path: str, copy: Path, adapter: Adapter | None = None, content: Hash | None = None) -> tuple[str, bool, Iterator[Row]]:
    """Rows of a file of samples; blank lines are left out.

    Args:
        path: JSONL, or a JSON array (told apart by the first character); gzip is recognised by its content.
        copy: where rows are written, one per line, if they cannot be read from the file by offset.
        adapter: what reads files of other layouts (formats/); None for JSON.
        content: given the bytes of a plain file as its rows are read, so that they are read once.

    Returns:
        The file in which offsets count, whether places are items (not lines), and the rows.

    Raises:
        ValueError: no such file, a damaged archive, or an array that is no JSON; a row that is too long only while iterating.
    """
    if adapter is not None:
        _write_copy(copy, (as_json(row, path, place) for place, row in enumerate(adapter(path), start=1)))
        return str(copy), True, _lines(str(copy), path)
    try:
        packed, is_array = _look_at(path)
        if is_array:
            _write_copy(copy, _array_items(path, packed))
            return str(copy), True, _lines(str(copy), path)
        if packed:
            with gzip.open(path, "rb") as lines:
                _write_copy(copy, _bounded_lines(lines, path))
            return str(copy), False, _lines(str(copy), path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: damaged gzip file ({error}); copy it again") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error}); check data_paths in the mixture") from error
    return path, False, _lines(path, path, content)


def as_json(row: Any, path: str, place: int) -> bytes:
    """A row that an adapter gave as a line of JSON.

    Raises:
        ValueError: it is no JSON; names file and item.
    """
    try:
        return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        at = row_place(path, place, True)
        raise ValueError(f"{at}: the adapter gave what is no JSON ({error}); expected text, numbers and lists") from error


def _open(path: str, packed: bool) -> Any:
    return gzip.open(path, "rb") if packed else open(path, "rb")


def _look_at(path: str) -> tuple[bool, bool]:
    """(whether a file is gzipped, whether it is a JSON array)."""
    with open(path, "rb") as file:
        packed = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        content = gzip.GzipFile(fileobj=file) if packed else file
        head = content.read(_HEAD)
        while head and not head.removeprefix(_BYTE_ORDER_MARK).strip():
            head = content.read(_HEAD)
    return packed, head.removeprefix(_BYTE_ORDER_MARK).lstrip()[:1] == b"["


def _array_items(path: str, packed: bool) -> Iterator[bytes]:
    with _open(path, packed) as file:
        text = file.read(_LARGEST_ARRAY)
        if file.read(1):
            raise ValueError(f"{path}: an array of more than {_LARGEST_ARRAY:,} bytes; write one JSON object per line instead")
    try:
        for item in parse_json(text.removeprefix(_BYTE_ORDER_MARK), path):
            yield json.dumps(item, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
    except RecursionError:
        raise ValueError(f"{path}: found {_TOO_DEEP}; {_EXPECTED}") from None


def _bounded_lines(lines: Any, path: str) -> Iterator[bytes]:
    while line := lines.readline(_LONGEST_ROW):
        if len(line) == _LONGEST_ROW:
            raise ValueError(f"{path}: a row of more than {_LONGEST_ROW:,} bytes; {_EXPECTED}")
        yield line


def _write_copy(copy: Path, lines: Iterator[bytes]) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(copy) as temporary, open(temporary, "wb") as file:
        file.writelines(lines)


def _lines(path: str, source: str, content: Hash | None = None) -> Iterator[Row]:
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(_bounded_lines(file, source), start=1):
            if content is not None:
                content.update(line)
            start = len(_BYTE_ORDER_MARK) if number == 1 and line.startswith(_BYTE_ORDER_MARK) else 0
            text = line[start:].rstrip(b"\r\n")
            if text.strip():
                yield Row(offset + start, number, text)
            offset += len(line)


def row_digest(text: bytes) -> bytes:
    """Sixteen bytes that differ where a row's text differs; the index keeps them."""
    return hashlib.blake2b(text, digest_size=16).digest()


class RowReader:
    """Rows of one indexed file by offset; safe in forked workers, because nothing moves a shared position."""

    def __init__(self, path: str, rows_path: str, is_array: bool, files: OpenFiles) -> None:
        self.path = path
        self._rows_path = rows_path
        self._is_array = is_array
        self._files = files

    def where(self, place: int) -> str:
        """File and line of a row, for messages."""
        return row_place(self.path, place, self._is_array)

    def sample(self, offset: int, size: int, place: int, digest: int | None = None) -> Sample:
        """Reads and parses a row.

        Args:
            offset: of its first byte.
            size: in bytes.
            place: line or item, for messages.
            digest: first eight bytes of the row's digest when it was indexed, little-endian; None where that is not known.

        Raises:
            ValueError: the file cannot be read, or its row is no longer the one that was indexed. Names file and line.
        """
        try:
            text = self._files.read(self._rows_path, offset, size)
        except OSError as error:
            raise ValueError(f"{self.where(place)}: the row cannot be read ({error.strerror or error}); {_PUT_BACK}") from error
        if digest is not None and int.from_bytes(row_digest(text)[:8], "little") != digest:
            raise self.changed(place)
        return parse_row(text, self.path, place, self._is_array)

    def changed(self, place: int) -> ValueError:
        """What to raise where a row is not the one that was indexed."""
        copy = "" if self._rows_path == self.path else f" (read from its copy {self._rows_path})"
        return ValueError(f"{self.where(place)}: the row{copy} is not the one that was indexed: the file changed since; {_PUT_BACK}")


def parse_row(text: bytes, path: str, place: int, is_array: bool) -> Sample:
    """Parses a row.

    Raises:
        ValueError: no JSON, or not the schema; names file and line.
    """
    at = row_place(path, place, is_array)
    return parse_sample(parse_json(text, at), at)


def parse_json(text: bytes, where: str) -> Any:
    """Parses the text of a row, whatever it holds.

    Raises:
        ValueError: no JSON; the message begins with `where`.
    """
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
