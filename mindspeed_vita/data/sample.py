"""One training sample: messages, pictures and videos, from a row in any layout that schema/ reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mindspeed_vita.data.media.paths import frames_reference
from mindspeed_vita.data.schema import plain_row
from mindspeed_vita.data.schema.boxes import BOX, Box, fill_boxes

IGNORED_LABEL = -100


@dataclass(frozen=True)
class Message:
    """One turn; <image> and <video> in the content stand for the sample's media, in order."""

    role: str
    """system, user or assistant; text: a document that is learnt as a whole; tokens: a sample that is tokenised already."""
    content: str
    learn: bool = True
    """False: not learnt although it is the assistant's."""
    token_ids: tuple[int, ...] = ()
    """Of the role tokens."""
    supervised: tuple[bool, ...] = ()
    """Of the role tokens: whether each one is learnt."""


@dataclass(frozen=True)
class Sample:
    """A conversation and its media, paths as written."""

    messages: tuple[Message, ...]
    images: tuple[str, ...]
    """Paths; a null in the row is an empty one here, and the index skips the sample."""
    videos: tuple[str, ...]
    """Paths of files and of folders of frames, or references to lists of frames (media/paths.py)."""
    boxes: tuple[Box, ...] = ()
    """In pixels, for each <bbox> in the messages; located() writes them."""
    unknown_keys: tuple[str, ...] = ()
    """Keys of the row that were not used."""

    def first_turns(self, count: int) -> Sample:
        """The sample cut after its first messages, with the media that those refer to."""
        if count >= len(self.messages):
            return self
        kept = self.messages[:count]
        pictures, clips = (sum(message.content.count(tag) for message in kept) for tag in ("<image>", "<video>"))
        return replace(self, messages=kept, images=self.images[:pictures], videos=self.videos[:clips])

    def located(self, sizes: Sequence[tuple[int, int]]) -> Sample:
        """The sample with its boxes as text, in thousandths of their pictures.

        Args:
            sizes: (width, height) of each picture, in pixels.

        Raises:
            ValueError: a box reaches beyond its picture.
        """
        if not self.boxes:
            return self
        left, messages = list(self.boxes), []
        for message in self.messages:
            here = [left.pop(0) for _ in range(message.content.count(BOX))]
            messages.append(replace(message, content=fill_boxes(message.content, [box.text(*sizes[box.image]) for box in here])))
        return replace(self, messages=tuple(messages), boxes=())


def has_answer(sample: Sample) -> bool:
    """Whether anything that is learnt has content: the end of an empty answer alone teaches to say nothing."""
    if sample.messages[0].role == "tokens":
        return any(sample.messages[0].supervised)
    return any(message.content.strip() for message in sample.messages if message.role in ("assistant", "text") and message.learn)


def parse_sample(row: Any, where: str) -> Sample:
    """Checks a row and turns it into a Sample; docs/data.md lists the layouts that are accepted.

    Args:
        row: parsed JSON.
        where: file and line, for messages.

    Raises:
        ValueError: the row has none of the layouts, or a key that changes what is learnt and cannot be honoured.
    """
    plain = plain_row(row, where)
    objects = plain.get("objects", {"bbox": [], "image_id": []})
    return Sample(
        messages=_messages(plain),
        images=tuple(plain.get("images", ())),
        videos=tuple(video if isinstance(video, str) else frames_reference(video) for video in plain.get("videos", ())),
        boxes=tuple(Box(owner, tuple(corners)) for corners, owner in zip(objects["bbox"], objects["image_id"])),
        unknown_keys=tuple(plain.get("unknown_keys", ())),
    )


def _messages(plain: dict[str, Any]) -> tuple[Message, ...]:
    if "messages" in plain:
        return tuple(Message(turn["role"], turn["content"], turn.get("loss", True)) for turn in plain["messages"])
    if "text" in plain:
        return (Message("text", plain["text"]),)
    supervised = tuple(label != IGNORED_LABEL for label in plain["labels"])
    return (Message("tokens", "", token_ids=tuple(plain["input_ids"]), supervised=supervised),)
