"""A server with a tiny model, in a thread of the test process, and what its tests send."""

from __future__ import annotations

import asyncio
import base64
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mindspeed_vita.engine import session as processes
from mindspeed_vita.inference.request_loop import RequestLoop
from mindspeed_vita.inference.session import InferenceSession, SessionSettings, load_session
from mindspeed_vita.serving.engine import Engine
from mindspeed_vita.serving.served_loop import ServedLoop
from mindspeed_vita.serving.settings import ServeSettings
from tests.tiny_checkpoint import make_tokenizer, random_weights, tiny_recipe


@dataclass
class Running:
    """A server that runs."""

    url: str
    engine: Engine
    loop: RequestLoop
    folder: Path
    lines: list[dict[str, Any]] = field(default_factory=list)

    def idle(self) -> bool:
        """Whether nothing of any request is left."""
        return self.engine.num_requests == 0 and self.loop.idle and not sum(counts.used for counts in self.loop.counts())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native run with random weights."""
    from mindspeed_vita.checkpoint.native import checkpoint as native

    folder = tmp_path_factory.mktemp("served")
    make_tokenizer(folder / "tokenizer")
    recipe = tiny_recipe(tokenizer=str(folder / "tokenizer"), max_frames=200)
    native.save_full_weights(folder / "run", random_weights(seed=6), recipe)
    return folder / "run"


@pytest.fixture(scope="module")
def session(checkpoint: Path) -> Iterator[InferenceSession]:
    borrowed = torch.distributed.is_initialized()
    yield load_session(checkpoint, settings=SessionSettings(cache_memory=1 << 23, block_size=16), max_pixels=1_000_000)
    if not borrowed:
        processes.shutdown()


@contextmanager
def serving(session: InferenceSession, folder: Path, most: int = 256, time_limit: float = 60.0, **settings: Any) -> Iterator[Running]:
    """A server on a free port, until the block ends."""
    import uvicorn

    from mindspeed_vita.serving.app import create_app
    from mindspeed_vita.serving.server import bind

    loop = ServedLoop(session, sequences=16)
    engine = Engine(loop, most=most, time_limit=time_limit)
    running = Running("", engine, loop, folder)
    app = create_app(engine, loop, ServeSettings(model="tiny", **settings), folder, running.lines.append)
    bound = bind("127.0.0.1", 0)
    running.url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])), daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        yield running
    finally:
        if engine.alive:
            engine.drain(0)
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def server(session: InferenceSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The server that most tests share."""
    with serving(session, tmp_path_factory.mktemp("media")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium without a window."""
    from playwright.sync_api import sync_playwright

    from tests.unit.serving.chat_page import CHROMIUM

    assert CHROMIUM is not None, "chromium is not installed; .ci/run installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    """The page, opened by a browser that reaches nothing but the server."""
    context = browser.new_context(viewport={"width": 900, "height": 700}, permissions=["clipboard-read", "clipboard-write"])
    context.set_default_timeout(60_000)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith((server.url, "data:", "blob:")) else faults.append(request.url))
    page.goto(server.url)
    page.locator("#model", has_text="tiny").wait_for()
    yield page
    context.close()
    assert not faults


class Gate:
    """Lets a server's loop make so many steps, and then waits until it is opened."""

    def __init__(self, server: Running, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
        self.open, self._left, self._step = threading.Event(), steps, server.loop.step
        monkeypatch.setattr(server.loop, "step", self.step)

    def step(self) -> Any:
        """The loop's own step, when it may."""
        if not self._left:
            assert self.open.wait(60)
        self._left = max(0, self._left - 1)
        return self._step()


def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Waits for a condition; the seconds only bound a test that fails."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def picture(seed: int = 0, size: tuple[int, int] = (60, 40)) -> str:
    """A data: URL of a picture of noise."""
    held = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(held, "png")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def shown(text: str, *urls: str, kind: str = "image_url") -> list[dict[str, Any]]:
    """Messages with media."""
    return [{"role": "user", "content": [*({"type": kind, kind: {"url": url}} for url in urls), {"type": "text", "text": text}]}]


def raw(url: str, data: bytes) -> socket.socket:
    """A connection to a server, on which bytes were sent."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(data)
    return connection


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data: URL of a video of five frames, one a second."""
    import av

    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for seed in range(5):
            pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
