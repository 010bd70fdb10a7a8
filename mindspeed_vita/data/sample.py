"""One training sample: messages, pictures and videos, from a row of JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from reprlib import Repr
from typing import Any

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_SCHEMA = '{"messages": [{"role": ..., "content": ...}], "images": [...], "videos": [...]}'

_SHORT = Repr()  # for messages: neither long nor deep values are written out
_SHORT.maxstring = _SHORT.maxother = 60


@dataclass(frozen=True)
class Message:
    """One turn; <image> and <video> in the content stand for the sample's media, in order."""

    role: str
    """system, user or assistant."""
    content: str


@dataclass(frozen=True)
class Sample:
    """A conversation and its media, paths as written."""

    messages: tuple[Message, ...]
    images: tuple[str, ...]
    """Paths; a null in the row is an empty one here, and the index skips the sample."""
    videos: tuple[str, ...]

    def first_turns(self, count: int) -> Sample:
        """The sample cut after its first messages, with the media that those refer to."""
        kept = self.messages[:count]
        pictures, clips = (sum(message.content.count(tag) for message in kept) for tag in ("<image>", "<video>"))
        return Sample(kept, self.images[:pictures], self.videos[:clips])


def parse_sample(row: Any, where: str) -> Sample:
    """Checks a row of JSON and turns it into a Sample.

    Accepted are messages with role and content, and conversations with from and value (human, gpt). Null for a list of media
    counts as none; other keys are ignored.

    Args:
        row: parsed JSON.
        where: file and line, for messages.

    Raises:
        ValueError: the row does not have the schema.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: found {_kind(row)}, expected an object {_SCHEMA}")
    name, turns = next(((key, row[key]) for key in ("messages", "conversations") if row.get(key)), ("messages", None))
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{where}: found keys {sorted(map(str, row))}, expected a list of turns under 'messages' or 'conversations'")
    messages = tuple(_message(turn, f"{where}: {name}[{place}]") for place, turn in enumerate(turns))
    return Sample(messages, _paths(row.get("images"), f"{where}: images"), _paths(row.get("videos"), f"{where}: videos"))


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise ValueError(f"{where}: found {_kind(turn)}, expected an object with role and content")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{where}: found role {_SHORT.repr(role)}, expected one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise ValueError(f"{where}: found {_kind(content)} as content, expected a string")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        half = f"{content[error.start]!r} at {error.start}"
        raise ValueError(f"{where}: found half a character ({half}), expected text; remove it or write the whole pair") from error
    return Message(ROLES[role], content)


def _paths(value: Any, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(path is None or isinstance(path, str) for path in value):
        raise ValueError(f"{where}: found {_kind(value)}, expected a list of paths")
    return tuple(path or "" for path in value)


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {_SHORT.repr(value)}"
