"""Answers the questions of a file, by letter likelihood and by generation in one request, and writes a record for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.data.templates import get_template
from mindspeed_vita.evaluation.answer_tokens import letter_tokens
from mindspeed_vita.evaluation.choice.extraction import RULES, is_right, letter_of
from mindspeed_vita.evaluation.choice.prompt import request_of
from mindspeed_vita.evaluation.choice.question import Question
from mindspeed_vita.evaluation.choice.schemas import Sources, choose_schema
from mindspeed_vita.evaluation.choice.schemas.base64_tsv import LONGEST_REFERENCE
from mindspeed_vita.evaluation.choice.subtitles import read_subtitles, shown_at
from mindspeed_vita.evaluation.choice.table import Row, read_rows
from mindspeed_vita.evaluation.clips import ClipEncoder, split_clip
from mindspeed_vita.evaluation.pictures import PictureFolder
from mindspeed_vita.inference.batch_file import BatchFile, answer_lines
from mindspeed_vita.inference.request import Answer, Request
from mindspeed_vita.inference.request_loop import RequestLoop
from mindspeed_vita.inference.sampling import SamplingParams
from mindspeed_vita.inference.session import InferenceSession


@dataclass(frozen=True, kw_only=True)
class ChoiceSettings:
    """What is asked of `vita eval choice`."""

    file: Path
    """A benchmark's file, or a folder of files."""
    output: Optional[Path] = None
    """Folder of the records and results; None: named by the file and its schema. Many benchmarks name their files alike."""
    media: Optional[Path] = None
    """Folder of pictures and videos; None: the file's folder."""
    subtitles: Optional[Path] = None
    """Folder of subtitles; None: questions are asked without."""
    schema: Optional[str] = None
    """Name of the format; None: found from the columns."""
    instruction: str = ""
    """How to answer, in place of prompt.py's own."""
    max_new_tokens: int = 32
    """Most tokens of an answer."""
    limit: Optional[int] = None
    """Only so many rows from the first on."""


class ChoiceFile:
    """The questions of a file.

    Args:
        settings: where it is and how it is read.

    Raises:
        ValueError: it cannot be read, its columns fit no schema, or subtitles are asked of a benchmark without.
    """

    def __init__(self, settings: ChoiceSettings) -> None:
        self.settings = settings
        self.rows = {row.number: row for row in read_rows(settings.file)[: settings.limit]}
        self.schema = choose_schema(list(self.rows.values()), settings.schema)
        self.output = settings.output or Path(f"{settings.file.stem}_{self.schema.name}_results")
        if settings.subtitles is not None:
            if not self.schema.reads_subtitles:
                raise ValueError(f"--subtitles: {self.schema.benchmarks} has no subtitles; leave it out")
            if not settings.subtitles.is_dir():
                raise ValueError(f"--subtitles {settings.subtitles}: no such folder")
        media = settings.media or (settings.file if settings.file.is_dir() else settings.file.parent)
        if not media.is_dir():
            raise ValueError(f"--media {media}: no such folder")
        self._sources = Sources(
            media=media,
            subtitles=settings.subtitles,
            pictures=PictureFolder(self.output / "pictures"),
            same_picture={str(row.values["index"]): row.values["image"] for row in self.rows.values() if _holds_picture(row)},
        )
        self.lines = {number: _line(row) for number, row in self.rows.items()}

    def question(self, number: int) -> Question:
        """The question of a row.

        Raises:
            ValueError: file, line and column, and what is wrong there.
        """
        row = self.rows[number]
        if row.problem:
            raise ValueError(f"{row.place} {row.problem}")
        try:
            return self.schema.read(row, self._sources)
        except ValueError as error:
            raise ValueError(f"{row.place}: {error}") from error


def _holds_picture(row: Row) -> bool:
    picture = row.values.get("image")
    return "index" in row.values and isinstance(picture, str) and len(picture) > LONGEST_REFERENCE


def _line(row: Row) -> bytes:
    """What a row's record belongs to: a digest of its cells."""
    content = json.dumps(row.values, sort_keys=True, default=lambda value: hashlib.sha256(value).hexdigest() if isinstance(value, bytes)
                         else str(value))  # fmt: skip
    return json.dumps({"row": hashlib.sha256(f"{row.problem}{content}".encode()).hexdigest()}).encode()


def records_of(file: ChoiceFile, checkpoint: str, frames: int, others: dict[str, Any]) -> BatchFile:
    """The file of records for one number of frames.

    Args:
        file: the questions.
        checkpoint: which weights.
        frames: most frames of a video.
        others: what else the answers depend on.

    Raises:
        ValueError: the output belongs to another checkpoint, file or settings.
    """
    settings = file.settings
    kept = {
        "checkpoint": checkpoint, "schema": file.schema.name, "frames": frames, "subtitles": str(settings.subtitles),
        "media": str(settings.media), "instruction": settings.instruction, "max_new_tokens": settings.max_new_tokens, "rules": RULES,
        **others,
    }  # fmt: skip
    output = file.output / f"frames_{frames}.jsonl"
    return BatchFile(settings.file, output, json.dumps(kept, sort_keys=True), file.lines)


class ChoiceRun:
    """Answers the questions of a file. First rank only.

    Args:
        session: the loaded model. Its prompts are encoded with another number of frames for each call of `answer`.
        file: the questions.
        loop: of the session.
    """

    def __init__(self, session: InferenceSession, file: ChoiceFile, loop: RequestLoop) -> None:
        self.session, self.file, self.loop = session, file, loop
        loaded = session.loaded
        self._template, self._tokenizer = get_template(loaded.recipe.data.template), loaded.tokenizer
        self._letters: dict[str, dict[str, int]] = {}
        """Tokens by letter, for each set of letters that a question had."""
        self._questions: dict[int, Question] = {}

    def answer(self, records: BatchFile, frames: int, said: Callable[[int], None]) -> Iterator[str]:
        """Answers the rows without a record; yields a line of text for each that could not be answered.

        Args:
            records: of records_of.
            frames: most frames of a video.
            said: called with the number of rows that have a record.
        """
        loaded = self.session.loaded
        recipe = replace(loaded.recipe, data=replace(loaded.recipe.data, max_frames=frames))
        self.session.prompts = ClipEncoder(recipe, loaded.tokenizer, loaded.frame_pooling)
        at_once = 2 * self.loop.scheduler.budgets.sequences
        yield from answer_lines(self.loop, records, self._request, self._record, at_once=at_once, said=said)

    def _request(self, number: int) -> tuple[Request, SamplingParams]:
        question = self.file.question(number)
        place = self.file.rows[number].place
        for path in (*question.images, *(split_clip(video)[0] for video in question.videos)):
            if not Path(path).exists():
                raise ValueError(f"{place}: {path}: no such file; name its folder with --media")
        try:
            request = request_of(question, subtitles=self._subtitles(question), instruction=self.file.settings.instruction)
        except ValueError as error:
            raise ValueError(f"{place}: column question: {error}") from error
        self._questions[number] = question
        watched = tuple(self._tokens(question.letters).values())
        most = self.file.settings.max_new_tokens
        return request, SamplingParams(max_tokens=most, logprobs=0 if watched else None, watched=watched)

    def _tokens(self, letters: str) -> dict[str, int]:
        """The tokens of letters; none where the tokenizer lacks one of them, so that the question has no likelihoods."""
        if letters not in self._letters:
            try:
                self._letters[letters] = letter_tokens(self._template, self._tokenizer, letters)
            except ValueError:
                self._letters[letters] = {}
        return self._letters[letters]

    def _subtitles(self, question: Question) -> list[str]:
        if not question.subtitles:
            return []
        encoder = self.session.prompts
        assert isinstance(encoder, ClipEncoder)
        times = encoder.frame_times(question.videos[0])
        return shown_at(read_subtitles(Path(question.subtitles)), times, start=question.subtitles_start)

    def _record(self, number: int, answer: Answer) -> dict[str, Any]:
        if answer.reason == "error":
            return {"error": f"{self.file.rows[number].place}: {answer.message}"}
        return judged(self._questions.pop(number), answer)


def judged(question: Question, answer: Answer) -> dict[str, Any]:
    """The record of an answered question."""
    record: dict[str, Any] = {"id": question.id, "groups": dict(question.groups)}
    if question.circle:
        record["circle"] = question.circle
    record |= {"answer": answer.text, "reason": answer.reason, "prompt_tokens": answer.prompt_tokens, "tokens": len(answer.token_ids)}
    if answer.frames:
        record["frames"] = list(answer.frames)
    right: dict[str, bool] = {}
    if question.options:
        said = letter_of(answer.text, question.options, question.letters)
        found = {"generation": said}
        record["expected"] = list(question.answer)
        if answer.watched:
            logprobs = dict(zip(question.letters, answer.watched))
            record["logprobs"] = logprobs
            found = {"likelihood": max(logprobs, key=lambda letter: logprobs[letter]), **found}
        record |= found
        if question.answer:
            right = {method: letter in question.answer for method, letter in found.items()}
    else:
        record["expected"] = list(question.answer)
        if question.answer:
            right = {"generation": is_right(answer.text, question.answer)}
    return {**record, "right": right}
