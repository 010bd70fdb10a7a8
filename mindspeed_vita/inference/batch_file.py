"""Answers to the requests of a JSONL file: many at a time, a record as soon as each is answered, and on from there after a stop.

A line is {"prompt": TEXT} or {"messages": [{"role": ..., "content": ...}]}, with "images", "videos", "id" and settings of sampling such as
"max_tokens" where they are wanted; an id is a text or a number. Paths are relative to the file's folder.
A line that cannot be answered gets a record with "error".
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.data.sample import Message
from mindspeed_vita.files.writing import naming
from mindspeed_vita.inference.request import Answer, Request, ask
from mindspeed_vita.inference.request_loop import RequestLoop
from mindspeed_vita.inference.sampling import SamplingParams

_SAMPLING = tuple(field.name for field in fields(SamplingParams) if field.name not in ("forced", "watched"))
_KEYS = ("id", "prompt", "messages", "images", "videos", *_SAMPLING)
_ROLES = ("system", "user", "assistant")


def read_request(line: bytes, folder: Path, params: SamplingParams) -> tuple[Request, SamplingParams]:
    """A line of a batch file as a request.

    Args:
        line: UTF-8, without its end.
        folder: relative paths begin there.
        params: what the line does not set.

    Raises:
        ValueError: what is wrong with the line.
    """
    row = _parse(line)
    if not isinstance(row, dict):
        raise ValueError(f"is a JSON {type(row).__name__}; expected an object")
    unknown = sorted(set(row) - set(_KEYS))
    if unknown:
        close = [near for key in unknown for near in difflib.get_close_matches(key, _KEYS, n=1)]
        meant = f"did you mean {' and '.join(close)}? " if close else ""
        names = f"key{'s' * (len(unknown) > 1)} {', '.join(unknown)}"
        raise ValueError(f"has the unknown {names}; {meant}expected some of {', '.join(_KEYS)}")
    if isinstance(row.get("id"), (list, dict)):
        raise ValueError(f"has an id of type {type(row['id']).__name__}; expected a text or a number")
    if ("prompt" in row) == ("messages" in row):
        raise ValueError("needs either prompt or messages")
    images, videos = (_paths(row, key, folder) for key in ("images", "videos"))
    settings: dict[str, Any] = {key: row[key] for key in _SAMPLING if key in row}
    if isinstance(settings.get("stop"), list):
        settings["stop"] = tuple(settings["stop"])
    chosen = replace(params, **settings)
    if "prompt" in row:
        if not isinstance(row["prompt"], str):
            raise ValueError(f"has a prompt of type {type(row['prompt']).__name__}; expected a text")
        return ask(row["prompt"], images, videos), chosen
    return Request(messages=_messages(row["messages"]), images=tuple(images), videos=tuple(videos)), chosen


def _parse(line: bytes) -> Any:
    """The JSON value of a line.

    Raises:
        ValueError: there is none that can be read.
    """
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte 0x{line[error.start]:02x} at offset {error.start})") from error
    except RecursionError as error:
        raise ValueError("is JSON that is nested too deeply") from error
    except ValueError as error:  # bad JSON, or a number with too many digits
        raise ValueError(f"is not JSON ({error})") from error


def _lines(content: bytes) -> list[bytes]:
    """The lines of a JSONL file, without their ends. Only a line feed ends a line: JSON texts may hold other separators as they are."""
    return [line.removesuffix(b"\r") for line in content.split(b"\n")]


def _paths(row: dict[str, Any], key: str, folder: Path) -> list[str]:
    paths = row.get(key, [])
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError(f"has {key} that are no list of paths")
    return [str(folder / path) for path in paths]


def _messages(messages: Any) -> tuple[Message, ...]:
    if not isinstance(messages, list) or not messages:
        raise ValueError("has messages that are no list of turns")
    for message in messages:
        if not isinstance(message, dict) or set(message) != {"role", "content"} or not isinstance(message["content"], str):
            raise ValueError('has a turn that is not {"role": ..., "content": TEXT}')
        if message["role"] not in _ROLES:
            raise ValueError(f"has a turn of role {message['role']!r}; expected one of {', '.join(_ROLES)}")
    if messages[-1]["role"] != "user":
        raise ValueError(f"ends with a turn of the {messages[-1]['role']}; expected the user's")
    return tuple(Message(message["role"], message["content"]) for message in messages)


class BatchFile:
    """A file of requests and the file of its records.

    Args:
        path: requests, one a line; empty lines count but ask nothing.
        output: records, appended to. What is there already is not asked again.
        settings: what the answers depend on besides the lines, such as the checkpoint. A record holds a digest of both.
        lines: what is asked by number, where `path` is a file of another format; None: the lines of `path`.

    Raises:
        ValueError: no such file, an output that belongs to another file or other settings, or whose folder is missing.
    """

    def __init__(self, path: Path, output: Path, settings: str = "", lines: Optional[dict[int, bytes]] = None) -> None:
        if lines is None and not path.is_file():
            raise ValueError(f"batch file {path}: no such file")
        if not output.parent.is_dir():
            raise ValueError(f"{output}: {output.parent} is no folder; make it first")
        self.path, self.output, self._settings = path, output, settings.encode()
        self.failed: set[int] = set()
        """Lines whose record is an error."""
        if lines is None:
            lines = {number: line for number, line in enumerate(_lines(path.read_bytes()), 1) if line.strip()}
        self.lines = lines
        self.done = self._read_done()

    @property
    def left(self) -> list[int]:
        """Numbers of the lines without a record."""
        return [number for number in self.lines if number not in self.done]

    def _read_done(self) -> set[int]:
        """Lines that have a record. A record that a stop cut off is removed from the file."""
        if not self.output.exists():
            return set()
        content = self.output.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self.output.open("r+b") as file:
                file.truncate(len(whole))
        done = set()
        for number, text in enumerate(_lines(whole)[:-1], 1):
            try:
                record = _parse(text)
                line, digest = record["line"], record["sha256"]
                asked = self.lines.get(line)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.output} line {number} is no record of a batch; choose another --output") from error
            if asked is None or self._digest(asked) != digest:
                raise ValueError(
                    f"{self.output} line {number} answers another line {line} than {self.path} has, or was made from another checkpoint or "
                    "with other settings; choose another --output"
                )
            done.add(line)
            self._count(line, record)
        return done

    def write(self, number: int, record: dict[str, Any]) -> None:
        """Appends the record of a line."""
        head = {"line": number, "sha256": self._digest(self.lines[number])}
        identity = _id_of(self.lines[number])
        text = json.dumps({**head, **identity, **record}, ensure_ascii=True)  # so that no character can spoil the file
        with naming(self.output), self.output.open("a", encoding="ascii") as file:
            file.write(text + "\n")
        self.done.add(number)
        self._count(number, record)

    def _count(self, number: int, record: dict[str, Any]) -> None:
        if "error" in record:
            self.failed.add(number)

    def _digest(self, line: bytes) -> str:
        return hashlib.sha256(self._settings + b"\n" + line).hexdigest()

    def __str__(self) -> str:
        """How far it is, in a sentence."""
        said = f"{self.output}: {len(self.done)} of {len(self.lines)} lines of {self.path} have a record"
        return said + (f", {len(self.failed)} of them an error; to ask those again, take their records out" if self.failed else "")


def _id_of(line: bytes) -> dict[str, Any]:
    """The line's id, where it has one that a record can repeat."""
    try:
        row = _parse(line)
    except ValueError:
        return {}
    return {"id": row["id"]} if isinstance(row, dict) and "id" in row and not isinstance(row["id"], (list, dict)) else {}


def answer_file(loop: RequestLoop, batch: BatchFile, params: SamplingParams, *, at_once: int, said: Callable[[int], None]) -> Iterator[str]:
    """Answers the lines without a record; yields a line of text for each that could not be answered. First rank only.

    Args:
        loop: of the session.
        batch: the file.
        params: what lines do not set themselves.
        at_once: most requests that are read ahead.
        said: called with the number of lines that have a record, whenever it grows.
    """
    folder = batch.path.parent

    def read(number: int) -> tuple[Request, SamplingParams]:
        return read_request(batch.lines[number], folder, params)

    return answer_lines(loop, batch, read, lambda number, answer: _record(answer), at_once=at_once, said=said)


def answer_lines(
    loop: RequestLoop,
    batch: BatchFile,
    read: Callable[[int], tuple[Request, SamplingParams]],
    record: Callable[[int, Answer], dict[str, Any]],
    *,
    at_once: int,
    said: Callable[[int], None],
) -> Iterator[str]:
    """`answer_file` for lines of any format.

    Args:
        loop, batch, at_once, said: see answer_file.
        read: the request of a line. Its ValueError or OSError becomes the line's error.
        record: what is written for a line's answer.
    """
    waiting, more = iter(batch.left), True
    running: dict[int, int] = {}
    while more or running:
        while more and len(running) < at_once:
            number = next(waiting, None)
            if number is None:
                more = False
                break
            try:
                request, chosen = read(number)
                running[loop.add(request, chosen)] = number
            except ConnectionError:  # another rank is gone
                raise
            except (ValueError, OSError) as error:
                batch.write(number, {"error": str(error)})
                yield f"{batch.path}:{number} {error}"
        for update in loop.step() if running else ():
            if update.answer is not None:
                number = running.pop(update.number)
                batch.write(number, record(number, update.answer))
                if update.answer.reason == "error":
                    yield f"{batch.path}:{number} {update.answer.message}"
        said(len(batch.done))


def _record(answer: Answer) -> dict[str, Any]:
    if answer.reason == "error":
        return {"error": answer.message}
    found = {"answer": answer.text, "reason": answer.reason, "prompt_tokens": answer.prompt_tokens, "tokens": len(answer.token_ids)}
    tokens = [{"token": token.token, "logprob": token.logprob, "top": token.top} for token in answer.tokens]
    return {**found, "logprobs": tokens} if tokens else found
