"""From named fields (a line of a table, an object of LLaVA's JSON) to a row of our schema."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Optional

USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "image": ("image", "images", "image_path", "file_name", "filename", "file", "filepath", "path", "picture", "photo", "img"),
    "video": ("video", "videos", "video_path", "clip"),
    "answer": ("answer", "caption", "captions", "text", "description", "response", "label", "output"),
    "question": ("question", "prompt", "instruction", "query", "input"),
}
"""What the fields are usually called. Case does not matter."""
_DEFAULTS = {"image": "Describe the picture.", "video": "Describe the video.", "label": "What is it?"}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the fields; None: found by their usual names."""

    image: Optional[str] = None
    video: Optional[str] = None
    answer: Optional[str] = None
    question: Optional[str] = None

    def locate(self, header: Collection[str], where: str) -> Columns:
        """The fields that a table has: a name, or an empty text where there is no such field.

        Args:
            header: names of all fields.
            where: file, for messages.

        Raises:
            ValueError: a field that was named is missing, two fields could be meant, or there is no medium or no answer.
        """
        found = {field.name: self._find(field.name, header, where) for field in fields(self)}
        shown = ", ".join(header) or "none"
        if not found["image"] and not found["video"]:
            raise ValueError(f"{where}: found the columns {shown}; expected one with the path of the picture or video ("
                             f"{', '.join(USUAL_NAMES['image'])}, video); name yours with --image-column or --video-column")  # fmt: skip
        if not found["answer"]:
            raise ValueError(f"{where}: found the columns {shown}; expected one with the answer ({', '.join(USUAL_NAMES['answer'])}); "
                             "name yours with --answer-column")  # fmt: skip
        return Columns(**found)

    def _find(self, role: str, header: Collection[str], where: str) -> str:
        named = getattr(self, role)
        if named is not None:
            if named not in header:
                raise ValueError(f"{where}: --{role}-column {named}: no such column; found {', '.join(header)}")
            return str(named)
        usual = [name for name in header if name.strip().lower() in USUAL_NAMES[role]]
        if len(usual) > 1:
            raise ValueError(f"{where}: the columns {' and '.join(usual)} could both be the {role}; say which with --{role}-column")
        return usual[0] if usual else ""


class Questions:
    """The questions for media that come with a caption alone, in turn.

    Args:
        texts: what the user gave; empty: a default for each kind.
    """

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self._turns: Optional[Iterator[str]] = itertools.cycle(texts) if texts else None

    def next(self, kind: str) -> str:
        """The next question about an image, a video, or an image whose answer is a label."""
        return next(self._turns) if self._turns is not None else _DEFAULTS[kind]


def row_of_fields(values: Mapping[str, Any], columns: Columns, questions: Questions) -> dict[str, Any]:
    """One question and one answer about one picture or video.

    Args:
        values: field -> text.
        columns: as Columns.locate gives them.
        questions: used where the question is missing or empty.

    Raises:
        ValueError: no medium, both kinds of it, or no answer.
    """
    media = {role: _text(values, getattr(columns, role)) for role in ("image", "video")}
    answer = _text(values, columns.answer)
    if not any(media.values()):
        raise ValueError("no path of a picture or video")
    if all(media.values()):
        raise ValueError("a picture and a video in one row; expected one of them")
    if not answer:
        raise ValueError(f"the field {columns.answer} is empty; expected the answer")
    kind = "image" if media["image"] else "video"
    question = _text(values, columns.question) or questions.next(kind)
    return conversation(kind, media[kind], question, answer)


def conversation(kind: str, path: str, question: str, answer: str) -> dict[str, Any]:
    """One question and one answer about one image or video; the question may place the tag itself."""
    tag = f"<{kind}>"
    content = question if tag in question else f"{tag}\n{question}"
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}], f"{kind}s": [path]}


def _text(values: Mapping[str, Any], name: Optional[str]) -> str:
    value = values.get(name) if name else None
    return "" if value is None else str(value).strip()
