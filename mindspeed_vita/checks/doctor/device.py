"""What torch sees, asked in a process of its own: an import that fails or kills its process is a finding, not the end of the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Optional

_TIMEOUT = 180
_SCRIPT = """
import json, os, sys
kind = sys.argv[1]
found = {"torch": None, "cuda": None, "devices": [], "backend": None, "error": None}
try:
    import torch
    import torch.distributed as dist
    found["torch"], found["cuda"] = torch.__version__, torch.version.cuda
    if kind == "npu":
        import torch_npu
    device = getattr(torch, kind) if kind != "cpu" else None
    for number in range(device.device_count() if device else 0):
        free, total = device.mem_get_info(number)
        found["devices"].append({"name": device.get_device_name(number), "free": free, "total": total})
    if device is None or found["devices"]:
        backend = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}[kind]
        store = dist.TCPStore("127.0.0.1", 0, 1, True)  # as torchrun's; port 0: a free one
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        value = torch.full((4,), 3.0, device=kind)
        dist.all_reduce(value)
        assert value.sum().item() == 12
        found["backend"] = backend
except BaseException as error:
    found["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
sys.stderr.flush()
os.write(1, ("\\nFOUND " + json.dumps(found) + "\\n").encode())
os._exit(0)
"""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What `import torch` gave."""

    torch: Optional[str] = None
    cuda: Optional[str] = None
    """CUDA that this torch was built for."""
    devices: tuple[tuple[str, float, float], ...] = ()
    """(name, free GiB, total GiB) of each."""
    backend: Optional[str] = None
    """Collective backend that reduced a tensor in one process."""
    error: Optional[str] = None


def look(kind: str) -> Seen:
    """Imports torch (and torch_npu) in a child and reduces a tensor on one device.

    Args:
        kind: npu, cuda or cpu.
    """
    # without this, `import torch` itself fails where torch_npu is installed and CANN is not found
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT, kind], capture_output=True, text=True, timeout=_TIMEOUT, env=environment, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return Seen(error=f"no answer within {_TIMEOUT} s")
    answer = next((row for row in reversed(done.stdout.splitlines()) if row.startswith("FOUND ")), None)
    if answer is None:
        return Seen(error=f"the process ended with status {done.returncode}: {' '.join(done.stderr.split())[-300:]}")
    return _seen(json.loads(answer.removeprefix("FOUND ")))


def _seen(found: dict[str, Any]) -> Seen:
    devices = tuple((row["name"], row["free"] / 2**30, row["total"] / 2**30) for row in found.pop("devices"))
    return Seen(devices=devices, **found)
