"""Builds libraries that stand where CANN's stand, from the torch_npu wheel itself: the functions it asks for, over host memory.

acl.c holds the few that must do something; every other function only returns 0. No kernel computes: device.py and kernels/ do that.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import torch

_ACL = Path(__file__).with_name("acl.c")
_TWO_ACCELERATORS = Path(__file__).with_name("two_accelerators.cpp")
_CANN_NAME = re.compile(r"(acl|rt|Msprof|Hccl)[A-Z][A-Za-z0-9]*|acl(rt|op|mdl|tdt)[A-Z][A-Za-z0-9]*")
_KERNEL_NAME = re.compile(r"aclnn[A-Z][A-Za-z0-9]*")
_EMPTY = ("libhccl", "libacl_op_compiler", "libge_runner", "libgraph", "libacl_tdt_channel", "libatb")
"""Libraries that are loaded by name; their functions lie in libascendcl too."""

PRELOAD = "libtwo_accelerators.so"
"""Made where torch is built with CUDA; two_accelerators.cpp says why."""


def missing_tools() -> list[str]:
    """Programs that are needed here and not found."""
    cuda = () if torch.version.cuda is None else ("g++",)
    return [tool for tool in ("gcc", "readelf", "strings", *cuda) if shutil.which(tool) is None]


def build_stubs(wheel: Path, target: Path) -> int:
    """Builds the libraries for an unpacked torch_npu wheel.

    Args:
        wheel: folder that holds torch_npu/.
        target: folder for the libraries, to be put on LD_LIBRARY_PATH.

    Returns:
        number of kernels (aclnn*) the wheel knows by name.

    Raises:
        subprocess.CalledProcessError: a tool failed.
    """
    target.mkdir(parents=True, exist_ok=True)
    package = wheel / "torch_npu"
    binaries = [*package.glob("lib/*.so"), *package.glob("_C*.so")]
    asked_for = {name for binary in binaries for name in _undefined(binary) if _CANN_NAME.fullmatch(name)}
    ours = set(re.findall(r"^(?:int|size_t|const char \*)\s*(acl\w+)\(", _ACL.read_text(encoding="utf-8"), re.MULTILINE))
    _compile(target, "libascendcl", _ACL.read_text(encoding="utf-8") + _functions(asked_for - ours))
    for name in _EMPTY:
        _compile(target, name, "", f"-L{target}", "-Wl,--no-as-needed", "-lascendcl")
    text = _run("strings", "-n", "6", str(package / "lib" / "libtorch_npu.so"))
    kernels = {line for line in text.splitlines() if _KERNEL_NAME.fullmatch(line)}
    _compile(target, "libopapi", _functions(kernels))
    if torch.version.cuda is not None:
        _run("g++", "-shared", "-fPIC", "-O1", "-o", str(target / PRELOAD), str(_TWO_ACCELERATORS))
    return len(kernels)


def _undefined(binary: Path) -> set[str]:
    """Names of the symbols that a library wants from others."""
    rows = (line.split() for line in _run("readelf", "-W", "--dyn-syms", str(binary)).splitlines())
    return {row[7].split("@")[0] for row in rows if len(row) > 7 and row[6] == "UND"}


def _functions(names: set[str]) -> str:
    return "".join(f"long {name}(void) {{ return 0; }}\n" for name in sorted(names))


def _compile(target: Path, name: str, source: str, *arguments: str) -> None:
    library = target / f"{name}.so"
    command = ["gcc", "-shared", "-fPIC", "-w", "-O1", f"-Wl,-soname,{library.name}", "-o", str(library), "-x", "c", "-", *arguments]
    subprocess.run(command, input=source, text=True, check=True)


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
