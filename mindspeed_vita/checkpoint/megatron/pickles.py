"""The one reader of pickled checkpoint files. It builds tensors and plain values; every other class becomes an inert stand-in.

No name in a file is ever imported: what may be built is listed here.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch


class Arguments(SimpleNamespace):
    """Stands for argparse.Namespace, in which Megatron keeps its command line. Values that are no plain ones are Inert."""


def _rebuild_marked(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor to which a program gave attributes, such as Megatron's fp32 parameters, without them and of the plain type."""
    return function(*arguments)


_ALLOWED = {
    ("argparse", "Namespace"): Arguments,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_marked,
    ("torch", "Size"): torch.Size,
}


_TORCHSCRIPT = "constants.pkl"
"""The record by which torch.load takes a file for TorchScript."""


class Inert:
    """Stands for an object that is not wanted; whatever it is made of is dropped."""

    def __new__(cls, *arguments: Any, **named: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **named: Any) -> Inert:
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Drops an entry of a list-like object."""

    def extend(self, values: Any) -> None:
        """Drops entries of a list-like object."""


class _Restricted(pickle.Unpickler):
    def __init__(self, file: Any, **named: Any) -> None:
        content = file.read()
        _check_memo(content)
        super().__init__(io.BytesIO(content), **named)

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return _ALLOWED.get((module, name), Inert)


def _check_memo(content: bytes) -> None:
    """Refuses a number of a remembered object that is larger than the pickle: the reader would take memory for all numbers below it.

    Raises:
        ValueError: there is one, or the content is no pickle.
    """
    for opcode, argument, at in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= len(content):
            raise ValueError(f"object number {argument} at byte {at} of a pickle of {len(content)} bytes")


def _check_records(file: Any) -> None:
    """Refuses a TorchScript archive: torch.load hands one to torch.jit.load, which would build the classes and run the code in it.

    It is torch's reader that lists the records, because zipfile may see other ones in a file that was made for that.

    Args:
        file: a path as text, or an open file at its begin.

    Raises:
        ValueError: it is one.
        RuntimeError: torch cannot read the archive.
    """
    if _TORCHSCRIPT in torch._C.PyTorchFileReader(file).get_all_records():
        raise ValueError(f"it is a TorchScript archive (it has the record {_TORCHSCRIPT}); expected what torch.save writes")


class Record:
    """Stands for a dataclass of torch.distributed.checkpoint.metadata: its values, and none of its code."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


_RECORDS = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata",
        "MetadataIndex",
        "TensorStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
}


class _Metadata(_Restricted):
    def find_class(self, module: str, name: str) -> Any:
        return Record if name in _RECORDS.get(module, ()) else super().find_class(module, name)


_READER = SimpleNamespace(Unpickler=_Restricted, __name__=__name__)


class _Window(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: Any, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError(f"place {base + offset} before the part's begin")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        wanted = max(0, min(len(buffer), self._length - self._at))
        count = int(self._file.readinto(memoryview(buffer)[:wanted]))
        self._at += count
        return count


def read_pickle(path: Path) -> dict[str, Any]:
    """A file of torch.save whose top level is a dict. Its tensors are mapped, not read.

    Raises:
        ValueError: the file is cut off, or is no such file.
        OSError: it cannot be read.
    """
    if not zipfile.is_zipfile(path):  # the older format cannot be mapped, and nobody writes it any more
        raise ValueError(f"{path} is not a whole file of torch.save: it is no zip archive; copy it again")
    with _refusing(path, "file of torch.save"):
        _check_records(str(path))
        content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_READER, mmap=True)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a dict with the key 'model'")
    return content


def read_tensor(path: Path, start: int, length: int) -> Any:
    """What torch.save wrote into a part of a file; its elements are read into memory.

    Args:
        path: the file.
        start: first byte of the part.
        length: its bytes.

    Raises:
        ValueError: the part is cut off, or torch.save did not write it.
        OSError: it cannot be read.
    """
    with _refusing(path, "file of torch.save"), path.open("rb") as file:
        window: Any = io.BufferedReader(_Window(file, start, length))
        if not zipfile.is_zipfile(window):
            raise ValueError(f"its {length:,} bytes at {start:,} are no zip archive")
        window.seek(0)
        _check_records(window)
        window.seek(0)
        return torch.load(window, map_location="cpu", weights_only=False, pickle_module=_READER)


def read_metadata(path: Path) -> Record:
    """The .metadata file of torch.distributed.checkpoint, as records without behaviour.

    Raises:
        ValueError: the file is cut off, or is no such file.
        OSError: it cannot be read.
    """
    with _refusing(path, "metadata file of torch.distributed.checkpoint"), path.open("rb") as file:
        content = _Metadata(file).load()
        if not isinstance(content, Record):
            raise ValueError(f"it holds a {type(content).__name__}")
    return content


@contextmanager
def _refusing(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # a pickle of anybody's can go wrong in any way
        raise ValueError(f"{path} is not a whole {what}: {' '.join(str(error).split())[:200]}; copy it again") from error
