"""The one reader of pickled checkpoint files. It builds tensors and plain values; every other class becomes an inert stand-in.

No name in a file is ever imported: what may be built is listed here.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
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


def read_pickle(path: Path) -> dict[str, Any]:
    """A file of torch.save whose top level is a dict. Its tensors are mapped, not read.

    Raises:
        ValueError: the file is cut off, or is no such file.
        OSError: it cannot be read.
    """
    reader = SimpleNamespace(Unpickler=_Restricted, __name__=__name__)
    if not zipfile.is_zipfile(path):  # the older format cannot be mapped, and nobody writes it any more
        raise ValueError(f"{path} is not a whole file of torch.save: it is no zip archive; copy it again")
    try:
        content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader, mmap=True)
    except OSError:
        raise
    except Exception as error:  # a pickle of anybody's can go wrong in any way
        raise ValueError(f"{path} is not a whole file of torch.save: {' '.join(str(error).split())[:200]}; copy it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a dict with the key 'model'")
    return content
