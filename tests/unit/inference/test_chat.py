"""A conversation: turns add up, commands do what they say, and a mistake changes nothing."""

from __future__ import annotations

import json
import os
import pty
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mindspeed_vita.cli.chat import TypedLines
from mindspeed_vita.inference.chat import Chat, interrupts
from mindspeed_vita.inference.request import Answer, Request
from mindspeed_vita.inference.request_loop import Update
from mindspeed_vita.inference.sampling import SamplingParams


class Loop:
    """Answers in two pieces; a question "stop me" or "stop the reading" is interrupted, "break" ends with an error."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.cancelled: list[int] = []
        self.pieces: list[Update] = []

    def prepare(self, request: Request) -> Request:
        if request.messages[-1].content == "stop the reading":
            signal.raise_signal(signal.SIGINT)
        return request

    def take(self, request: Request, params: SamplingParams) -> int:
        self.asked.append(request)
        number, question = len(self.asked), request.messages[-1].content
        failed = {"reason": "error", "message": "it broke"} if question == "break" else {}
        answer = Answer(text=f"To {question}.", token_ids=(1,), prompt_tokens=2, **failed)
        self.pieces = [Update(number, "To "), Update(number, f"{question}.", answer)]
        return number

    def step(self) -> list[Update]:
        if self.asked[-1].messages[-1].content == "stop me" and not self.cancelled:
            signal.raise_signal(signal.SIGINT)
            return []
        return [self.pieces.pop(0)] if self.pieces else []

    def cancel(self, number: int) -> None:
        self.cancelled.append(number)


@pytest.fixture
def chat() -> Chat:
    shown: list[str] = []
    chat = Chat(Loop(), SamplingParams(), shown.append)  # type: ignore[arg-type]
    chat.shown = shown  # type: ignore[attr-defined]
    return chat


def said(chat: Chat) -> str:
    text = "".join(chat.shown)  # type: ignore[attr-defined]
    chat.shown.clear()  # type: ignore[attr-defined]
    return text


def test_turns_add_up_with_their_media(chat: Chat, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.touch()
    assert chat.line(f"/image {picture}") and chat.line("What is it?\n") and said(chat) == "To <image>\nWhat is it?.\n"
    assert chat.line("And then?") and said(chat) == "To And then?.\n"
    last = chat.loop.asked[-1]  # type: ignore[attr-defined]
    assert [message.role for message in last.messages] == ["user", "assistant", "user"] and last.images == (str(picture),)
    assert last.messages[1].content == "To <image>\nWhat is it?."
    chat.line(f"/save {tmp_path / 'talk.json'}")
    row = json.loads((tmp_path / "talk.json").read_text())
    assert len(row["messages"]) == 4 and row["images"] == [str(picture)] and "videos" not in row
    assert chat.line("/reset") and chat.line("Hi") and len(chat.loop.asked[-1].messages) == 1  # type: ignore[attr-defined]


def test_a_file_that_was_there_before_is_not_replaced(chat: Chat, tmp_path: Path) -> None:
    notes, talk = tmp_path / "notes.md", tmp_path / "talk.jsonl"
    notes.write_text("mine")
    assert chat.line("Hi") and chat.line(f"/save {talk}") and chat.line(f"/save {notes}")
    assert "notes.md exists; choose another file" in said(chat) and notes.read_text() == "mine"
    assert chat.line("And?") and chat.line(f"/save {talk}") and len(json.loads(talk.read_text())["messages"]) == 4
    assert chat.line(f"/save {tmp_path / 'gone' / 'talk.jsonl'}") and "gone is no folder; make it first" in said(chat)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/image", "/image needs a file: /image FILE"),
        ("/video gone.mp4", "gone.mp4: no such file"),
        ("/colour", "unknown command /colour; /help lists them"),
        ("break", "it broke"),
        ("Is <image> it?", "1 <image> tags for 0 images"),
        ("stop me", "(stopped)"),
        ("stop the reading", "(stopped)"),
    ],
)
def test_a_mistake_is_said_and_changes_nothing(chat: Chat, line: str, message: str) -> None:
    chat.line("Hi")
    before = list(chat.conversation.messages)
    said(chat)
    assert chat.line(line) and message in said(chat)
    assert chat.conversation.messages == before
    assert chat.line("") and said(chat) == "" and not chat.line("/quit")


def test_a_second_interrupt_ends_and_the_handler_is_given_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupts() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_where_the_launcher_ends_all_at_an_interrupt_the_first_one_ends_the_chat_after_its_step() -> None:
    loop = Loop()
    chat = Chat(loop, SamplingParams(), lambda text: None, ends_by_interrupt=True)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        chat.line("stop me")
    assert loop.cancelled == [1], "the ranks let go of it first"


@pytest.fixture
def terminal() -> Iterator[tuple[int, TypedLines]]:
    """What a user types into, and the lines that arrive."""
    user, end = pty.openpty()
    with os.fdopen(end, "r") as source:
        yield user, TypedLines(source)
    os.close(user)


def test_enter_stops_an_answer_and_a_line_typed_early_is_the_next_question(terminal: tuple[int, TypedLines]) -> None:
    user, lines = terminal
    assert not lines.entered()
    os.write(user, b"Next?\n")
    assert not lines.entered()
    os.write(user, b"\n")
    assert lines.entered() and not lines.entered()
    assert lines.read() == "Next?\n"
    os.write(user, b"\x04")  # Ctrl-D
    assert not lines.entered() and not lines.entered() and lines.read() is None
    loop = Loop()
    shown: list[str] = []
    chat = Chat(loop, SamplingParams(), shown.append, stopped=lines.entered)  # type: ignore[arg-type]
    os.write(user, b"\n")
    assert chat.line("Hi") and "".join(shown) == "\n(stopped)\n" and loop.cancelled == [1] and not chat.conversation.messages


def test_lines_of_a_pipe_wait_for_their_turn() -> None:
    read, write = os.pipe()
    os.write(write, b"One?\n\nTwo?\n")
    os.close(write)
    with os.fdopen(read, "r") as source:
        lines = TypedLines(source)
        assert not lines.entered() and [lines.read() for _ in range(4)] == ["One?\n", "\n", "Two?\n", None]
