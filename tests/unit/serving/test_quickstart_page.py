"""The chat page with the model of the quickstart: a dropped picture gets the right answer, an answer is stopped, the page is reloaded."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mindspeed_vita.engine import session as processes
from mindspeed_vita.inference.session import InferenceSession, SessionSettings, load_session
from tests.unit.serving.chat_page import ask, drop, finished, last, needs_chromium
from tests.unit.serving.conftest import Gate, Running, until

MODEL = Path(__file__).resolve().parents[2] / "assets" / "quickstart_model"
SCREENSHOT = os.environ.get("VITA_SCREENSHOT")
"""Where to write a screenshot; docs/figures/chat_page.png was made with it."""
needs_chromium()


@pytest.fixture(scope="module")
def session() -> Iterator[InferenceSession]:
    """The trained model in place of the random one of the other tests (tests/assets/README.md)."""
    borrowed = torch.distributed.is_initialized()
    yield load_session(MODEL, settings=SessionSettings(cache_memory=1 << 23, block_size=16))
    if not borrowed:
        processes.shutdown()


def photo(name: str) -> str:
    """A held-out picture of the quickstart, as a data: URL."""
    return "data:image/jpeg;base64," + base64.b64encode((MODEL / name).read_bytes()).decode()


def test_the_right_answers_appear_one_is_stopped_and_a_reload_begins_anew(
    page: Any, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(page, "coffee.jpg", photo("coffee_080.jpg"))
    page.get_by_role("img", name="coffee.jpg").wait_for()
    ask(page, "What is it?")
    assert finished(page, 1) == "A cup of coffee."
    page.reload()
    assert page.locator("article").count() == 0
    drop(page, "cat.jpg", photo("chelsea_080.jpg"))
    ask(page, "What is it?")
    assert finished(page, 1) == "A cat.", "the same question, another picture"
    facts = str(last(page).locator(".facts").text_content())
    assert "54 prompt tokens" in facts and "3 answer tokens" in facts
    if SCREENSHOT:
        page.screenshot(path=SCREENSHOT)
    page.reload()
    drop(page, "coffee.jpg", photo("coffee_080.jpg"))
    with monkeypatch.context() as patch:
        gate = Gate(server, patch, steps=3)
        ask(page, "What is it?")
        page.locator("article.assistant .text:not(:empty)").wait_for(state="attached")
        page.keyboard.press("Escape")
        text = finished(page, 1)
        gate.open.set()
        until(server.idle)
    assert text and "A cup of coffee.".startswith(text) and text != "A cup of coffee."
    assert "stopped" in str(last(page).locator(".facts").text_content())
    page.get_by_role("button", name="Retry").click()
    page.get_by_text("5 answer tokens").wait_for()
    assert finished(page, 1) == "A cup of coffee."
