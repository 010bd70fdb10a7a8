"""What a user asks: messages with tags, and the files they refer to. Shared by every way of generating."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional, Protocol

from mindspeed_vita.data.sample import Message
from mindspeed_vita.inference.sampling import SampledToken
from mindspeed_vita.inference.sequence import FinishReason


@dataclass(frozen=True, kw_only=True)
class Request:
    """A conversation that ends with the user's turn."""

    messages: tuple[Message, ...]
    """Turns; <image> and <video> stand for the media, in order."""
    images: tuple[str, ...] = ()
    """Paths of pictures."""
    videos: tuple[str, ...] = ()
    """Paths of video files or of folders of frames."""
    text: Optional[str] = None
    """A text that the model goes on with, without a chat template and without media; in place of messages."""


Fault = Literal["", "media", "time", "model"]
"""Whose fault an error is: a picture or video cannot be decoded, the time limit passed, or the model's numbers are not finite."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model said."""

    text: str
    """Without special tokens."""
    token_ids: tuple[int, ...]
    """As generated, the stop token left out."""
    prompt_tokens: int
    """Length of the prompt, media included."""
    reason: FinishReason = "stop"
    """Why it ended."""
    message: str = ""
    """For reason "error": what happened."""
    fault: Fault = ""
    """For reason "error": whose fault it is."""
    cached_tokens: int = field(default=0, compare=False)
    """Prompt tokens that the cache had already. They change the time, not the answer."""
    frames: tuple[int, ...] = ()
    """Frames taken from each video."""
    tokens: tuple[SampledToken, ...] = ()
    """The tokens with their log-probabilities, where those were asked for."""
    watched: tuple[float, ...] = ()
    """The log-probabilities that SamplingParams.watched asked for, before the answer's first token."""


class Generator(Protocol):
    """A loaded checkpoint that answers."""

    def generate(self, request: Request, *, max_new_tokens: int) -> Answer:
        """Greedy decoding, until the end of the turn or `max_new_tokens`."""
        ...


def ask(prompt: str, images: Sequence[str] = (), videos: Sequence[str] = ()) -> Request:
    """One user turn. Media without a tag in the prompt go before it, each on a line of its own, as in training.

    Raises:
        ValueError: a file is missing, or the prompt has some tags but not one per medium.
    """
    for kind, paths in (("image", images), ("video", videos)):
        for path in paths:
            if not Path(path).exists():
                raise ValueError(f"{kind} {path}: no such file")
    lead = ""
    for kind, paths in (("image", images), ("video", videos)):
        found = prompt.count(f"<{kind}>")
        if found == 0:
            lead += f"<{kind}>\n" * len(paths)
        elif found != len(paths):
            raise ValueError(f"the prompt has {found} <{kind}> tags for {len(paths)} {kind}s; give one tag each, or none at all")
    return Request(messages=(Message("user", lead + prompt),), images=tuple(images), videos=tuple(videos))
