"""A file of torch.save whose tensors are written as a stream, one at a time in memory. torch.load reads it, mapped or not."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.serialization import skip_data

from mindspeed_vita.files.safetensors_file import tensor_bytes
from mindspeed_vita.files.shard_stream import Report
from mindspeed_vita.files.tensors import Spec
from mindspeed_vita.files.writing import naming

_BLOCK = 1 << 24
_LOCAL_HEADER = 30
"""Bytes of a zip entry's local header before its name. Two numbers at 26 give the lengths of the name and of what follows it."""
_CENTRAL_HEADER = 46
"""The same in the list of entries at the end of the file. Three numbers at 28 give the lengths of what follows."""
_FOLLOWED = 8
"""The flag of an entry whose checksum stands behind its data (after four bytes that say so), not in its local header."""


@dataclass(frozen=True)
class _Entry:
    """Where the data of a tensor lies in the file."""

    start: int
    """First byte of the data."""
    size: int
    """Bytes of it."""
    checksums: tuple[int, int]
    """Places of its CRC-32: at the entry, and in the list of entries."""


def write_torch(
    path: Path,
    around: Callable[[Mapping[str, torch.Tensor]], Any],
    specs: Mapping[str, Spec],
    take: Callable[[str], Iterable[torch.Tensor]],
    report: Report,
) -> None:
    """Writes one file. It is not synced.

    torch.save first lays the file out around tensors without data. Then each tensor's bytes go to their place.

    Args:
        path: file to create.
        around: makes the saved object around the tensors.
        specs: type and shape of the tensors, each with elements, in order.
        take: gives a tensor by name, whole or as the flat parts that follow one another in it; asked in order, each once.
        report: told of the bytes written.

    Raises:
        OSError: naming the file.
    """
    # memory that is never touched takes none
    empty = {name: torch.empty(spec.shape, dtype=spec.dtype) for name, spec in specs.items()}
    with naming(path):
        try:
            with skip_data():
                torch.save(around(empty), path)
        except RuntimeError as error:  # torch hides what the system said
            raise OSError(f"{path} cannot be written: {error}") from error
        del empty
        entries = _entries(path)
        with path.open("r+b") as file:
            for number, (name, spec) in enumerate(specs.items()):
                entry = entries[number]
                assert entry.size == spec.nbytes, (name, entry, spec)
                file.seek(entry.start)
                checksum = 0
                for tensor in take(name):
                    assert tensor.dtype == spec.dtype, (name, tensor.dtype, spec)
                    content = tensor_bytes(tensor)
                    for first in range(0, len(content), _BLOCK):
                        block = content[first : first + _BLOCK]
                        # Reading it first also brings a mapped file into memory: write() would fetch it page by page, at less
                        # than half the speed.
                        checksum = zlib.crc32(block, checksum)
                        file.write(block)
                        report(len(block))
                        del block
                    del tensor, content
                assert file.tell() == entry.start + entry.size, (name, file.tell(), entry)
                for place in entry.checksums:
                    file.seek(place)
                    file.write(checksum.to_bytes(4, "little"))


def _entries(path: Path) -> list[_Entry]:
    """Where the tensors lie, in the order in which torch.save met them."""
    found = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        at = archive.start_dir
        for entry in archive.infolist():
            file.seek(at)
            listed, header = at + 16, file.read(_CENTRAL_HEADER)
            at += _CENTRAL_HEADER + sum(int.from_bytes(header[place : place + 2], "little") for place in (28, 30, 32))
            folder, _, number = entry.filename.rpartition("/")
            if folder.endswith("/data") and number.isdigit():
                file.seek(entry.header_offset)
                header = file.read(_LOCAL_HEADER)
                start = entry.header_offset + _LOCAL_HEADER + sum(int.from_bytes(header[place : place + 2], "little") for place in (26, 28))
                own = start + entry.file_size + 4 if entry.flag_bits & _FOLLOWED else entry.header_offset + 14
                found[int(number)] = _Entry(start, entry.file_size, (own, listed))
    return [found[number] for number in sorted(found)]
