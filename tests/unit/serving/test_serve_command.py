"""`vita serve` as a process of its own: what it refuses, and how it drains."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from mindspeed_vita.cli.main import main
from tests.unit.serving.conftest import until

VITA = [sys.executable, "-m", "mindspeed_vita.cli.main", "serve"]
SMALL = ["--cache-memory", "8MB", "--port", "0"]


class Process:
    """A server process, and the lines that it wrote."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=dict(os.environ))
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(iter(self.process.stderr.readline, ""))  # extend takes each line as it comes

    @property
    def text(self) -> str:
        return "".join(self.lines)

    @property
    def url(self) -> str:
        until(lambda: self.process.poll() is not None or "serving run at" in self.text, 120)
        found = re.search(r"serving run at (http://\S+)\n", self.text)
        assert found, self.text
        return found[1]

    def wait(self) -> int:
        status = self.process.wait(120)
        self.reader.join(10)
        return status


@contextmanager
def started(command: list[str]) -> Iterator[Process]:
    process = Process(command)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.process.kill()
            process.process.wait()


def ask(url: str, tokens: int, messages: list[dict[str, Any]] | None = None) -> tuple[int, dict]:
    messages = messages or [{"role": "user", "content": "How many?"}]
    body = json.dumps({"messages": messages, "temperature": 0, "max_tokens": tokens}).encode()
    try:
        with urlopen(Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"}), timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except HTTPError as error:
        return error.code, json.loads(error.read())


def running(url: str) -> int:
    with urlopen(f"{url}/metrics", timeout=60) as answer:
        return int(float(re.search(r"^vita_requests_running (\S+)$", answer.read().decode(), re.MULTILINE)[1]))


def test_sigterm_lets_the_running_finish_and_exits_with_0(checkpoint: Path) -> None:
    with started([*VITA, str(checkpoint), *SMALL]) as server, ThreadPoolExecutor(1) as pool:
        url = server.url
        answer = pool.submit(ask, url, 1500)
        until(lambda: running(url))
        server.process.send_signal(signal.SIGTERM)
        until(lambda: "no new requests" in server.text)
        status, refused = ask(url, 1)
        assert status == 503 and refused["error"]["code"] == "shutting_down"
        status, whole = answer.result(120)
        assert status == 200 and whole["usage"]["completion_tokens"] == 1500
        assert server.wait() == 0
    assert all(json.loads(line)["path"] for line in server.lines if line.startswith("{"))


def test_what_does_not_finish_in_time_gets_a_503(checkpoint: Path) -> None:
    with started([*VITA, str(checkpoint), *SMALL, "--drain", "0.1"]) as server, ThreadPoolExecutor(1) as pool:
        url = server.url
        answer = pool.submit(ask, url, 3900)
        until(lambda: running(url))
        server.process.send_signal(signal.SIGTERM)
        assert answer.result(120)[0] == 503 and server.wait() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines in without a key; set --api-key-file, or --insecure"),
        (["--media-root", "/nowhere"], "--media-root /nowhere: no such folder"),
        (["--scratch", "/nowhere"], "--scratch /nowhere: no such folder on "),
        (["--max-characters", "0"], "--max-characters is 0; expected at least 1"),
        (["--max-queue", "0"], "--max-queue is 0; expected at least 1"),
        (["--max-wait", "nan"], "--max-wait is nan; expected more than 0"),
        (["--drain", "-1"], "--drain is -1; expected at least 0"),
        (["--port", "70000"], "--port is 70000; expected a number from 0 to 65535"),
        (["--api-key-file", "/nowhere"], "the file of API keys /nowhere cannot be read"),
        (["--max-body", "many"], "--max-body"),
    ],
)
def test_what_cannot_be_served_is_refused_before_a_model_is_loaded(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["serve", str(checkpoint), *options]) == 2
    said = capsys.readouterr().err
    assert message in said and "loading" not in said


def test_a_port_that_is_taken_is_named(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(checkpoint), "--port", str(port)]) == 2
    assert f"--port {port} cannot be had (Address already in use)" in capsys.readouterr().err


def test_a_taken_port_is_named_before_weights_are_fetched(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from mindspeed_vita.engine import chosen_step

    monkeypatch.setattr(chosen_step, "choose_step", lambda address: pytest.fail(f"{address} is fetched"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "s3://bucket/runs/general", "--port", str(port)]) == 2
    assert f"--port {port} cannot be had (Address already in use)" in capsys.readouterr().err
