"""A file of torch.save whose tensors are written as a stream, one at a time in memory. torch.load reads it, mapped or not."""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.serialization import skip_data

from mindspeed_vita.files.safetensors_file import tensor_bytes
from mindspeed_vita.files.shard_stream import Report
from mindspeed_vita.files.tensors import Spec
from mindspeed_vita.files.writing import naming

_BLOCK = 1 << 24
_LOCAL_HEADER = 30
"""Bytes of a zip entry's local header before its name. Two numbers at 26 give the lengths of the name and of what follows it."""


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
        offsets = _offsets(path)
        with path.open("r+b") as file:
            for number, (name, spec) in enumerate(specs.items()):
                offset, size = offsets[number]
                assert size == spec.nbytes, (name, size, spec)
                file.seek(offset)
                for tensor in take(name):
                    assert tensor.dtype == spec.dtype, (name, tensor.dtype, spec)
                    content = tensor_bytes(tensor)
                    for first in range(0, len(content), _BLOCK):
                        block = content[first : first + _BLOCK]
                        _touch(block)
                        file.write(block)
                        report(len(block))
                        del block
                    del tensor, content
                assert file.tell() == offset + size, (name, file.tell() - offset, size)


def _touch(block: memoryview) -> None:
    """Reads a byte of each page, so that a mapped file is in memory: write() would fetch it page by page, at less than half the speed."""
    np.frombuffer(block, np.uint8)[:: mmap.PAGESIZE].max()


def _offsets(path: Path) -> list[tuple[int, int]]:
    """Where the tensors lie: offset and size of each, in the order in which torch.save met them."""
    found = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for entry in archive.infolist():
            folder, _, number = entry.filename.rpartition("/")
            if folder.endswith("/data") and number.isdigit():
                file.seek(entry.header_offset)
                header = file.read(_LOCAL_HEADER)
                start = entry.header_offset + _LOCAL_HEADER + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
                found[int(number)] = (start, entry.file_size)
    return [found[number] for number in sorted(found)]
