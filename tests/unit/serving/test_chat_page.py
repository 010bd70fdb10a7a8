"""The chat page in a headless Chromium: a dropped picture, a streamed answer, several turns, stop, retry, and copying as curl."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.serving.chat_page import ask, drop, finished, last, needs_chromium
from tests.unit.serving.conftest import Running, picture, until

needs_chromium()


def wanted(server: Running, messages: list[dict[str, Any]], tokens: int = 12) -> str:
    import openai

    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    answer = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=tokens)
    return answer.choices[0].message.content or ""


def test_a_dropped_picture_is_asked_about_over_two_turns(page: Any, server: Running, film: str) -> None:
    seen = picture(5, (80, 60))
    drop(page, "noise.png", seen)
    page.get_by_role("img", name="noise.png").wait_for()
    ask(page, "What is it?")
    part = {"type": "image_url", "image_url": {"url": seen}}
    turns: list[dict[str, Any]] = [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]
    first = finished(page, 1)
    assert first == wanted(server, turns) and first
    facts = last(page).locator(".facts").text_content()
    assert "prompt tokens" in facts and "12 answer tokens" in facts and " s" in facts
    page.set_input_files("#files", [{"name": "clip.mp4", "mimeType": "video/mp4", "buffer": base64.b64decode(film.split(",")[1])}])
    page.get_by_role("button", name="Remove clip.mp4").wait_for()
    ask(page, "And this?")
    clip = {"type": "video_url", "video_url": {"url": film}}
    turns += [{"role": "assistant", "content": first}, {"role": "user", "content": [clip, {"type": "text", "text": "And this?"}]}]
    assert finished(page, 2) == wanted(server, turns)
    assert page.get_by_text("clip.mp4, 5 frames used").count() == 1
    page.reload()
    assert page.locator("article").count() == 0


def test_stop_ends_an_answer_and_retry_asks_again(page: Any, server: Running) -> None:
    ask(page, "How many?", tokens=3900)
    page.locator("article.assistant .text:not(:empty)").wait_for(state="attached")
    page.keyboard.press("Escape")
    finished(page, 1)
    assert "stopped" in last(page).locator(".facts").text_content()
    until(server.idle)
    page.evaluate("document.getElementById('max_tokens').value = 12")
    page.get_by_role("button", name="Retry").click()
    page.get_by_text("12 answer tokens").wait_for()
    assert finished(page, 1) == wanted(server, [{"role": "user", "content": "How many?"}])


def test_an_error_is_shown_and_the_chat_goes_on(page: Any, server: Running) -> None:
    drop(page, "broken.png", "data:image/png;base64,AAAA")
    page.get_by_role("button", name="Remove broken.png").wait_for()
    ask(page, "What is it?")
    page.get_by_text("image 1 cannot be read as a picture").first.wait_for()
    ask(page, "How many?")
    page.get_by_text("12 answer tokens").wait_for()
    assert finished(page, 2) == wanted(server, [{"role": "user", "content": "How many?"}]), "the broken one is not part of it"


def test_the_copied_command_asks_the_same(page: Any, server: Running, tmp_path: Path) -> None:
    page.evaluate("document.getElementById('max_tokens').value = 12")
    page.get_by_label("Your question").fill("Who's 'it'?")
    page.get_by_role("button", name="Copy as curl").click()
    page.locator("#state", has_text="copied").wait_for(state="attached")
    command = page.evaluate("navigator.clipboard.readText()")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.endswith("data: [DONE]\n\n") and '"completion_tokens":12' in done.stdout


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [320, 1400])
def test_it_fits_narrow_and_wide_screens_and_everything_has_a_name(page: Any, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 600})
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    back = "rgb(21, 24, 28)" if scheme == "dark" else "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == back
    unnamed = "[...document.querySelectorAll('button, input, textarea')].filter((one) => !(one.textContent.trim() || one.labels?.length))"
    assert page.evaluate(f"{unnamed}.length") == 0
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"files", "curl", "send"} <= reached, reached
