"""`vita chat` over two processes: it answers, and ends with one message when a rank dies or hangs."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from mindspeed_vita.checkpoint.native import checkpoint as native
from tests.pools import Pools
from tests.tiny_checkpoint import make_tokenizer, random_weights, tiny_recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    make_tokenizer(folder / "tokenizer")
    native.save_full_weights(folder / "run", random_weights(seed=6), tiny_recipe(tokenizer=str(folder / "tokenizer")))
    return folder / "run"


def talk(run: Path, *more: str) -> list[subprocess.Popen[str]]:
    """Two ranks of `vita chat`, context parallel; the first one reads its lines from a pipe."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mindspeed_vita.cli.main", "chat", str(run), "--cp", "2", "--max-new-tokens", "3000", *more]
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))
    shared = {**os.environ, "PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return [
        subprocess.Popen(command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True, **ends)  # type: ignore[call-overload]
        for rank in range(2)
    ]


def ask(process: subprocess.Popen[str]) -> None:
    """Asks, and waits until the answer has begun."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("Hi?\n")
    process.stdin.flush()
    assert process.stdout.read(20)


def message(process: subprocess.Popen[str]) -> str:
    """The one line that a process ends with."""
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    lines = [line for line in error.splitlines() if line.startswith("vita: error:")]
    assert len(lines) == 1 and "Traceback" not in error, error
    return lines[0]


@pytest.mark.distributed
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_ends_the_run_with_one_message(run: Path, victim: int) -> None:
    processes = talk(run)
    ask(processes[0])
    processes[victim].send_signal(signal.SIGKILL)
    said = message(processes[1 - victim])
    assert f"another rank ended while rank {1 - victim} was " in said
    processes[victim].communicate(timeout=120)


@pytest.mark.distributed
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_hangs_ends_the_run_with_one_message_that_names_the_step(run: Path, victim: int) -> None:
    processes = talk(run, "--rank-timeout", "8")
    ask(processes[0])
    processes[victim].send_signal(signal.SIGSTOP)
    said = message(processes[1 - victim])
    what = r"computing the next token of 1 requests, from request 0 on|handing out the next token|waiting for word from the first rank"
    assert re.search(rf"rank {1 - victim} was ({what}).* and got no answer from another rank for 8 seconds", said), said
    assert "--rank-timeout" in said
    processes[victim].send_signal(signal.SIGCONT)
    _, error = processes[victim].communicate(timeout=120)
    assert processes[victim].returncode == 2, error


@pytest.mark.distributed
@pytest.mark.parametrize("leads", [True, False])
def test_a_first_rank_that_waits_for_its_user_is_not_one_that_hangs(pools: Pools, leads: bool) -> None:
    heard = pools("installed").run("tests.distributed.inference_runs:silence", cp=2, timeout=3.0, seconds=8.0, leads=leads)[1]
    if leads:
        assert heard == "word"
    else:
        assert heard.startswith("rank 1 was waiting for word from the first rank and got no answer from another rank for 3 seconds")


def launched(run: Path, terminal: int) -> subprocess.Popen[bytes]:
    """Two ranks of `vita chat` under torchrun, in the foreground of a terminal of their own."""
    vita = ["-m", "mindspeed_vita.cli.main", "chat", str(run), "--cp", "2", "--max-new-tokens", "3000"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *vita]
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    ends = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    # torchrun kills ranks that do not end: here it waits for longer than the test does.
    environment = {**os.environ, "PYTHONPATH": path, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "3600"}
    return subprocess.Popen(command, env=environment, preexec_fn=own_terminal, **ends)  # type: ignore[call-overload]


class Screen:
    """What a terminal shows."""

    def __init__(self, terminal: int) -> None:
        self._terminal, self.shown, self._read = terminal, "", 0

    def until(self, wanted: str, seconds: float = 300) -> None:
        """Reads on until a text is there, behind the last one that was waited for."""
        deadline = time.monotonic() + seconds
        while (found := self.shown.find(wanted, self._read)) < 0:
            assert time.monotonic() < deadline, self.shown
            if select.select([self._terminal], [], [], 1)[0]:
                self.shown += os.read(self._terminal, 1 << 16).decode(errors="replace")
        self._read = found + len(wanted)


@pytest.mark.distributed
def test_enter_stops_an_answer_under_torchrun_and_ctrl_c_ends_all(run: Path) -> None:
    user, terminal = pty.openpty()
    process = launched(run, terminal)
    os.close(terminal)
    screen = Screen(user)
    try:
        screen.until("> ")
        for _ in range(2):
            os.write(user, b"Hi?\n")
            screen.until("Hi?")
            time.sleep(1)
            os.write(user, b"\n")
            screen.until("(stopped)")
            screen.until("> ")
        os.write(user, b"Hi?\n")
        screen.until("Hi?")
        time.sleep(1)
        os.write(user, b"\x03")
        assert process.wait(120) != 0
    finally:
        process.kill()
        os.close(user)
