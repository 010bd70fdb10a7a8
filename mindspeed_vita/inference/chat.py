"""A conversation in the terminal: the user's lines, the model's answers as they come, and a few commands."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Optional

from mindspeed_vita.data.sample import Message
from mindspeed_vita.files.writing import write_text
from mindspeed_vita.inference.request import Request, ask
from mindspeed_vita.inference.request_loop import RequestLoop
from mindspeed_vita.inference.sampling import SamplingParams
from mindspeed_vita.wording import counted

HELP = """/image FILE   show a picture with the next question
/video FILE   show a video, or a folder of frames, with the next question
/reset        forget the conversation
/save FILE    write the conversation as a line of JSON, as training reads it
/quit         end (as Ctrl-D)
Enter stops an answer that is being shown."""


@dataclass
class Conversation:
    """The turns so far, and media that wait for the next one."""

    messages: list[Message] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)
    next_images: list[str] = field(default_factory=list)
    next_videos: list[str] = field(default_factory=list)

    def request(self, text: str) -> Request:
        """The conversation with one more question.

        Raises:
            ValueError: the question's tags and the media for it disagree, or a file is missing.
        """
        asked = ask(text, self.next_images, self.next_videos)
        return Request(
            messages=(*self.messages, *asked.messages), images=(*self.images, *asked.images), videos=(*self.videos, *asked.videos)
        )

    def take(self, request: Request, answer: str) -> None:
        """Goes on from a request that was answered."""
        self.messages = [*request.messages, Message("assistant", answer)]
        self.images, self.videos = list(request.images), list(request.videos)
        self.next_images, self.next_videos = [], []

    def row(self) -> str:
        """The conversation as a row of training data, with absolute paths: train on it with data.media_root=/."""
        content = {
            "messages": [{"role": message.role, "content": message.content} for message in self.messages],
            "images": [os.path.abspath(path) for path in self.images],
            "videos": [os.path.abspath(path) for path in self.videos],
        }
        return json.dumps({key: value for key, value in content.items() if value}, ensure_ascii=False)


class Chat:
    """Reads lines and answers them. First rank only.

    Args:
        loop: of the session.
        params: how tokens are chosen.
        show: takes text as it comes.
        stopped: asked between two steps whether the user wants no more of the answer.
        ends_by_interrupt: whether the first Ctrl-C ends the program, because the launcher ends the other processes anyway.
    """

    def __init__(
        self,
        loop: RequestLoop,
        params: SamplingParams,
        show: Callable[[str], None],
        *,
        stopped: Callable[[], bool] = lambda: False,
        ends_by_interrupt: bool = False,
    ) -> None:
        self.loop, self.params, self.show, self._stopped, self._ends_by_interrupt = loop, params, show, stopped, ends_by_interrupt
        self.conversation = Conversation()
        self._saved: set[Path] = set()
        """Files that this chat wrote, and may write again."""

    def line(self, text: str) -> bool:
        """Does what a line says; returns whether the conversation goes on. What is wrong is shown, and changes nothing."""
        text = text.strip()
        try:
            if text.startswith("/"):
                return self._command(text)
            if text:
                self._answer(text)
        except ConnectionError:  # another rank is gone
            raise
        except (ValueError, OSError) as error:
            self.show(f"{error}\n")
        return True

    def _command(self, text: str) -> bool:
        name, _, argument = text.partition(" ")
        argument = argument.strip()
        if name in ("/image", "/video", "/save") and not argument:
            raise ValueError(f"{name} needs a file: {name} FILE")
        if name in ("/image", "/video"):
            if not Path(argument).exists():
                raise ValueError(f"{argument}: no such file")
            (self.conversation.next_images if name == "/image" else self.conversation.next_videos).append(argument)
        elif name == "/reset":
            self.conversation = Conversation()
        elif name == "/save":
            self._save(Path(argument))
            self.show(f"{argument}: {counted(len(self.conversation.messages), 'turn')}\n")
        elif name == "/help":
            self.show(HELP + "\n")
        elif name != "/quit":
            raise ValueError(f"unknown command {name}; /help lists them")
        return name != "/quit"

    def _save(self, path: Path) -> None:
        if path.exists() and path.resolve() not in self._saved:
            raise ValueError(f"{path} exists; choose another file")
        if not path.parent.is_dir():
            raise ValueError(f"{path}: {path.parent} is no folder; make it first")
        write_text(path, self.conversation.row() + "\n")
        self._saved.add(path.resolve())

    def _answer(self, text: str) -> None:
        request = self.conversation.request(text)
        with interrupts() as interrupted:
            prepared = self.loop.prepare(request)  # it reads the media, so Ctrl-C may come meanwhile
            number = None if interrupted() else self.loop.take(prepared, self.params)
            while number is not None and not interrupted() and not self._stopped():
                for update in self.loop.step():
                    self.show(update.text)
                    if update.answer is not None:
                        self.show("\n")
                        if update.answer.reason == "error":
                            raise ValueError(update.answer.message)
                        self.conversation.take(request, update.answer.text)
                        return
            if number is not None:
                self.loop.cancel(number)
                self.loop.step()  # every rank lets go of it
            if interrupted() and self._ends_by_interrupt:
                raise KeyboardInterrupt
        self.show("\n(stopped)\n")  # the answer so far is dropped, the conversation stays as it was


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Inside the block a first Ctrl-C is only noted, so that it breaks no step in the middle; a second one raises KeyboardInterrupt.

    Yields:
        Whether Ctrl-C came. Where handlers cannot be set (not the main thread), it never does.
    """
    asked = False

    def note(number: int, frame: Optional[FrameType]) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        previous = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread: whoever owns it handles signals
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)
