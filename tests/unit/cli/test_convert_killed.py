"""A conversion that is killed at any of its system calls leaves the whole output, or the beginning that the same command goes on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.cli.main import main
from mindspeed_vita.files.shard_stream import JOURNAL
from tests.tiny_checkpoint import make_tokenizer, random_weights, tiny_recipe

WAYS = {
    "hf": ["convert", "--to", "hf", "--max-shard-size", "90KB", "--from"],
    "native": ["convert", "--to", "native", "--max-shard-size", "90KB", "--from"],
    "mindspeed-llm": ["convert", "--to", "mindspeed-llm", "--tp", "2", "--from"],
    "reshard": ["checkpoint", "reshard", "--max-shard-size", "90KB"],
}
CALLS = (
    *((os, name) for name in ("fsync", "rename", "replace", "rmdir", "truncate")),
    *((shutil, name) for name in ("rmtree", "copyfile")),
    (Path, "unlink"),
)


@pytest.mark.parametrize("way", WAYS)
def test_a_kill_at_any_point_loses_nothing(tmp_path: Path, way: str) -> None:
    """In processes of their own, forked from one that has imported everything."""
    make_tokenizer(tmp_path / "tokenizer")
    native.save_full_weights(tmp_path / "run", random_weights(), tiny_recipe(tokenizer=str(tmp_path / "tokenizer")))
    code = "import sys; from tests.unit.cli.test_convert_killed import kill_everywhere; kill_everywhere(*sys.argv[1:])"
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path), way], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]
    killed, whole, gone_on = map(int, ended.stdout.splitlines()[-1].split())
    assert killed > 10 and whole >= 1 and gone_on > 5, "the points of death lie before and behind the last rename"


def kill_everywhere(path: str, way: str) -> None:
    """Run in the child. Prints how many runs were killed, how many of them left the whole output, and how many went on."""
    folder = Path(path)
    os.fsync = lambda handle: None  # a killed process loses nothing that it wrote, and the disk is slow
    command = [*WAYS[way], str(folder / "run"), "--output"]
    assert main([*command, str(folder / "straight")]) == 0  # here, so that all is imported before the first fork
    expected = content(folder / "straight")
    count = folder / "count"
    assert forked(lambda: dying(1 << 30, count, [*command, str(folder / "counted")])) == 0
    total = int(count.read_text())
    killed = whole = gone_on = 0
    for number in sorted({*range(1, total, max(1, total // 6)), *range(max(1, total - 6), total + 1)}):
        output = folder / f"out{number}"
        assert forked(lambda: dying(number, count, [*command, str(output)])) == -signal.SIGKILL  # noqa: B023
        killed += 1
        if content(output) == expected:
            whole += 1
            continue
        assert not any(path.name in ("verification.json", "checksums.json") for path in finished(output)), number
        begun = next((path for path in folder.rglob(f"*{output.name}*{JOURNAL}")), None) or next(output.glob(f".*{JOURNAL}"), None)
        kept = set(inodes(begun)) if begun else set()
        more = ["--resume"] if begun and begun.with_name(begun.name.removesuffix(JOURNAL)).is_dir() else []
        gone_on += bool(more)
        assert forked(lambda: main([*command, str(output), *more])) == 0, number  # noqa: B023
        assert content(output) == expected, number
        assert kept <= {os.stat(path).st_ino for path in output.rglob("*")}, f"{number}: a whole file was written again"
        left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        assert not left, (number, left)
    print(killed, whole, gone_on)


def forked(work: Callable[[], object]) -> int:
    """Exit status of a process that does the work; minus a signal's number where that ended it."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            status = int(work())  # type: ignore[call-overload]
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def dying(number: int, count: Path, command: list[str]) -> int:
    """The command in a process that is killed just before its system call with this number; notes how many it makes."""
    calls = 0

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return call

    for place, name in CALLS:
        setattr(place, name, counted(getattr(place, name)))
    status = main(command)
    count.write_text(str(calls))
    return status


def finished(output: Path) -> Iterator[Path]:
    """The files of an output under their final names."""
    for path in output.rglob("*"):
        parts = path.relative_to(output).parts
        if path.is_file() and not any(part.startswith(".") for part in parts) and path.name != "run.lock":
            yield path


def content(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in finished(output)}


def inodes(journal: Path) -> Iterator[int]:
    """Of the files that a journal names as whole."""
    for line in journal.read_text().splitlines()[1:]:
        path = journal.with_name(journal.name.removesuffix(JOURNAL)) / json.loads(line)["file"]
        if path.is_file():
            yield os.stat(path).st_ino
