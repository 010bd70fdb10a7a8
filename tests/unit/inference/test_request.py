"""What a user asks becomes one turn with a tag per medium."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindspeed_vita.inference.request import ask


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for name in ("a.png", "b.png", "c.mp4"):
        (tmp_path / name).write_bytes(b"x")
    return [str(tmp_path / name) for name in ("a.png", "b.png", "c.mp4")]


def test_media_without_tags_go_before_the_prompt(files: list[str]) -> None:
    request = ask("What?", files[:2], files[2:])
    assert request.messages[0].content == "<image>\n<image>\n<video>\nWhat?"
    assert request.messages[0].role == "user" and request.images == tuple(files[:2]) and request.videos == (files[2],)


def test_tags_in_the_prompt_stay_where_they_are(files: list[str]) -> None:
    assert ask("Is <image> like <image>?", files[:2]).messages[0].content == "Is <image> like <image>?"
    assert ask("Is it <image>?", files[:1], files[2:]).messages[0].content == "<video>\nIs it <image>?"


def test_too_few_tags_and_missing_files_are_refused(files: list[str]) -> None:
    with pytest.raises(ValueError, match="1 <image> tags for 2 images"):
        ask("Is <image> it?", files[:2])
    with pytest.raises(ValueError, match="1 <video> tags for 0 videos"):
        ask("Is <video> it?")
    with pytest.raises(ValueError, match="image gone.png: no such file"):
        ask("What?", ["gone.png"])
