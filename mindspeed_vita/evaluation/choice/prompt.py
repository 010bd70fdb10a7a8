"""The text that a question becomes. Media come first, as in training."""

from __future__ import annotations

from collections.abc import Sequence

from mindspeed_vita.data.sample import Message
from mindspeed_vita.evaluation.choice.question import Question
from mindspeed_vita.inference.request import Request

CHOICE_INSTRUCTION = "Answer with the option's letter from the given choices directly."
OPEN_INSTRUCTION = "Answer the question using a single word or phrase."


def request_of(question: Question, *, subtitles: Sequence[str] = (), instruction: str = "") -> Request:
    """One turn of the user: media, subtitles, hint, question, options, and how to answer.

    Args:
        question: what is asked.
        subtitles: lines shown while frames are taken.
        instruction: the last line; empty: CHOICE_INSTRUCTION, or OPEN_INSTRUCTION for an open question.
    """
    lines = ["This video's subtitles are listed below:", *subtitles] if subtitles else []
    lines += [f"Hint: {question.hint}"] if question.hint else []
    lines.append(question.text)
    lines += [f"{letter}. {option}" for letter, option in zip(question.letters, question.options)]
    lines.append(instruction or (CHOICE_INSTRUCTION if question.options else OPEN_INSTRUCTION))
    body = "\n".join(lines)
    lead = ""
    for kind, paths in (("image", question.images), ("video", question.videos)):
        found = body.count(f"<{kind}>")
        if found == 0:
            lead += f"<{kind}>\n" * len(paths)
        elif found != len(paths):
            raise ValueError(f"the question has {found} <{kind}> tags for {len(paths)} {kind}s")
    return Request(messages=(Message("user", lead + body),), images=question.images, videos=question.videos)
