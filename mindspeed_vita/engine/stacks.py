"""What every thread of this process is doing, as text: Python stacks, the kernel's view, and native stacks where py-spy is installed."""

from __future__ import annotations

import faulthandler
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

_PY_SPY = 30.0
"""Seconds that py-spy may take."""


def describe_process(title: str) -> str:
    """The text, with a head line that names this process.

    Args:
        title: what the process is, such as its rank.
    """
    head = f"==== {title}, process {os.getpid()} on {platform.node()}, {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}"
    names = [f"thread 0x{thread.ident or 0:016x} is {thread.name}" for thread in threading.enumerate()]
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        stacks = file.read().decode(errors="replace")
    return "\n".join([head, *names, "", stacks, "In the kernel:", *_kernel(), "", *_native()]) + "\n"


def add_to(path: Path, text: str) -> None:
    """Adds the text of one process to a file that the processes of a run share, in one write.

    Raises:
        OSError: the file cannot be written.
    """
    handle = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def _kernel() -> list[str]:
    """A line for each thread: its name, state and the function of the kernel that it waits in, as far as this user may see it."""
    lines = []
    for task in sorted(Path("/proc/self/task").glob("*")):
        with suppress(OSError):  # it has ended
            name = (task / "comm").read_text().strip()
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            lines.append(f"  {task.name} {name}: state {state}, {(task / 'wchan').read_text() or '0'}")
    return lines


def _native() -> list[str]:
    tool = shutil.which("py-spy")
    if tool is None:
        return ["Native stacks: none, as py-spy is not installed (pip install py-spy)."]
    try:
        found = subprocess.run(
            [tool, "dump", "--native", "--pid", str(os.getpid())], capture_output=True, text=True, timeout=_PY_SPY, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"Native stacks: none ({error})."]
    return ["Native stacks (py-spy):", found.stdout or found.stderr]
