"""What the tests of the chat page do in the browser."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_DROP = """([name, type, url]) => {
    const bytes = Uint8Array.from(atob(url.split(",")[1]), (one) => one.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], name, { type }));
    document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


def needs_chromium() -> None:
    """Skips a module where Chromium is missing, but not in continuous integration: there it fails."""
    if CHROMIUM is None and os.environ.get("CI") != "true":
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)", allow_module_level=True)


def drop(page: Any, name: str, url: str) -> None:
    """Drops a file on the page, whose bytes a data: URL holds, and waits for its thumbnail."""
    page.evaluate(_DROP, [name, url[5 : url.index(";")], url])
    page.get_by_role("button", name=f"Remove {name}").wait_for()


def ask(page: Any, text: str, tokens: int = 12) -> None:
    """Asks with the keyboard alone."""
    page.evaluate("(tokens) => { document.getElementById('max_tokens').value = tokens; }", tokens)
    page.get_by_label("Your question").fill(text)
    page.keyboard.press("Enter")


def last(page: Any) -> Any:
    """The last answer."""
    return page.locator("article.assistant").last


def finished(page: Any, answers: int) -> str:
    """The text of the last of so many answers, once it is whole."""
    page.locator("article.assistant[aria-busy=false]").nth(answers - 1).wait_for()
    return str(last(page).locator(".text").text_content())
