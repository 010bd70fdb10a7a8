"""The stacks of a process that hangs: every thread with its name, the kernel's view, and py-spy's where there is one."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mindspeed_vita.engine.stacks import add_to, describe_process


@pytest.fixture(autouse=True)
def sleeper() -> Iterator[None]:
    """A thread that waits in a function of a telling name."""
    done = threading.Event()

    def waits_for_ever() -> None:
        done.wait()

    thread = threading.Thread(target=waits_for_ever, name="a-sleeper")
    thread.start()
    yield
    done.set()
    thread.join()


def test_every_thread_is_there_by_name_and_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    text = describe_process("rank 3 of 8")
    assert text.startswith("==== rank 3 of 8, process ")
    assert "is a-sleeper" in text and "in waits_for_ever" in text and "in describe_process" in text
    assert "Native stacks: none, as py-spy is not installed" in text
    if sys.platform == "linux":
        assert len([line for line in text.splitlines() if ": state " in line]) >= 2


def test_native_stacks_come_from_py_spy_and_its_complaints_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "py-spy"
    tool.write_text('#!/bin/sh\necho "told: $*"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "told: dump --native --pid" in describe_process("rank 0 of 1")
    tool.write_text('#!/bin/sh\necho "Permission denied" >&2\nexit 1\n')
    assert "Permission denied" in describe_process("rank 0 of 1")


def test_processes_add_to_one_file(tmp_path: Path) -> None:
    for rank in range(3):
        add_to(tmp_path / "stacks.txt", describe_process(f"rank {rank} of 3"))
    assert (tmp_path / "stacks.txt").read_text().count("==== rank ") == 3
