"""`vita chat` over two processes: it answers as one process does, and ends with one message when a rank dies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_vita.checkpoint.native import checkpoint as native
from tests.tiny_checkpoint import make_tokenizer, random_weights, tiny_recipe

ROOT = Path(__file__).resolve().parents[2]


def talk(run: Path) -> list[subprocess.Popen[str]]:
    """Two ranks of `vita chat`, context parallel; the first one reads its lines from a pipe."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mindspeed_vita.cli.main", "chat", str(run), "--cp", "2", "--max-new-tokens", "3000"]
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))
    shared = {**os.environ, "PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return [
        subprocess.Popen(command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True, **ends)  # type: ignore[call-overload]
        for rank in range(2)
    ]


@pytest.mark.distributed
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_ends_the_run_with_one_message(tmp_path: Path, victim: int) -> None:
    make_tokenizer(tmp_path / "tokenizer")
    native.save_full_weights(tmp_path / "run", random_weights(seed=6), tiny_recipe(tokenizer=str(tmp_path / "tokenizer")))
    processes = talk(tmp_path / "run")
    first, stdin = processes[0].stdout, processes[0].stdin
    assert first is not None and stdin is not None
    stdin.write("Hi?\n")
    stdin.flush()
    assert first.read(20)  # the answer has begun
    processes[victim].send_signal(signal.SIGKILL)
    left = processes[1 - victim]
    _, error = left.communicate(timeout=120)
    processes[victim].communicate(timeout=120)
    assert left.returncode == 2, error
    lines = [line for line in error.splitlines() if line.startswith("vita: error:")]
    assert len(lines) == 1 and "another rank ended while all were computing" in lines[0] and "Traceback" not in error
