"""Two processes serve one model; the second one is killed."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

from tests.unit.serving.conftest import picture, shown, until
from tests.unit.serving.test_serve_command import SMALL, VITA, Process, ask, running, started


def test_a_rank_that_dies_ends_the_server(checkpoint: Path, tmp_path: Path) -> None:
    """The ranks are started without torchrun, which would end the first one by a signal before it notices."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*VITA, str(checkpoint), *SMALL, "--cp", "2", "--scratch", str(tmp_path)]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**shared, "RANK": "1", "LOCAL_RANK": "1"}.items():
            patch.setenv(name, value)
        with started(command) as second, _first(patch, command) as server, ThreadPoolExecutor(1) as pool:
            url = server.url
            assert ask(url, 4)[0] == 200
            assert len(os.listdir(tmp_path)) == 1, "both ranks find the media of requests there"
            assert ask(url, 4, shown("What is it?", picture(1, (90, 60))))[0] == 200
            second.process.send_signal(signal.SIGTERM)
            assert ask(url, 4)[0] == 200, "only the first rank listens to the launcher's signal"
            answer = pool.submit(ask, url, 3900)
            until(lambda: running(url))
            states: set[int] = set()
            watch = threading.Thread(target=_watch, args=(url, states))
            watch.start()
            second.process.kill()
            status, said = answer.result(120)
            assert (status, said["error"]["code"]) == (503, "engine_failed")
            assert server.wait() == 1 and "the model stopped working" in server.text
            watch.join(60)
            assert states == {200, 503}, "it says so before it ends"
            assert not os.listdir(tmp_path), "nothing is left"


def _first(patch: pytest.MonkeyPatch, command: list[str]) -> AbstractContextManager[Process]:
    patch.setenv("RANK", "0")
    patch.setenv("LOCAL_RANK", "0")
    return started(command)


def _watch(url: str, states: set[int]) -> None:
    """What /health answers, until nobody answers."""
    while True:
        try:
            with urlopen(f"{url}/health", timeout=60) as answer:
                states.add(answer.status)
        except HTTPError as error:
            states.add(error.code)
        except (URLError, ConnectionError):
            return
        time.sleep(0.02)
