"""Looks through every row of every file of a mixture for what would stop or shrink a run: schema, tags, missing media.

The reserved texts are those of the recipe's tokenizer; without one, the names of the vision tokens.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mindspeed_vita.config.recipe import DataConfig
from mindspeed_vita.data.formats import adapter_for
from mindspeed_vita.data.measure import EMPTY_ANSWERS, NOTHING_TO_LEARN
from mindspeed_vita.data.media.decoder import get_decoder
from mindspeed_vita.data.media.limits import DecodeSettings
from mindspeed_vita.data.media.paths import MediaError, resolve
from mindspeed_vita.data.media.readers import check_reader
from mindspeed_vita.data.media.stored_media import fetch_medium
from mindspeed_vita.data.mixture import SourceSpec, load_mixture
from mindspeed_vita.data.prepare import decode_settings, media_root, store_cache
from mindspeed_vita.data.rows import iter_rows, parse_row, row_place
from mindspeed_vita.data.sample import Sample, has_answer
from mindspeed_vita.data.templates import get_template
from mindspeed_vita.data.tokenizer import load_tokenizer
from mindspeed_vita.hf.token_layout import ReservedText


@dataclass(frozen=True)
class RowProblem:
    """What is wrong with one row, or with a file as a whole."""

    source: str
    where: str
    """File and line."""
    reason: str


@dataclass(frozen=True)
class CheckedFile:
    """One file of the mixture."""

    source: str
    path: str
    num_rows: int
    problems: tuple[RowProblem, ...]
    notes: tuple[str, ...] = ()
    """What is left out without being wrong: keys that nothing uses, each with a count."""


def check_mixture(data: DataConfig, *, headers: bool = False) -> Iterator[CheckedFile]:
    """Checks each file in turn; goes on after what it finds.

    Args:
        data: the recipe's section.
        headers: also open every picture and video and read its header.

    Raises:
        ValueError: the mixture itself is wrong.
    """
    check_reader(data.video_reader)
    reserved = ReservedText(load_tokenizer(data.tokenizer, get_template(data.template)) if data.tokenizer else None)
    for spec in load_mixture(data.mixture, store_cache(data)):
        for path in spec.paths:
            yield _check_file(spec, path, media_root(data, path, spec.format), decode_settings(data), headers, reserved)


def _check_file(spec: SourceSpec, path: str, root: str, settings: DecodeSettings, headers: bool, reserved: ReservedText) -> CheckedFile:
    source, problems, num_rows = spec.name, [], 0
    unknown: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            _, is_array, rows = iter_rows(path, Path(folder) / "rows", adapter_for(path, spec.format))
            for row in rows:
                num_rows += 1
                at = row_place(path, row.place, is_array)
                try:
                    sample = parse_row(row.text, path, row.place, is_array)
                except ValueError as error:
                    problems.append(RowProblem(source, at, str(error).removeprefix(f"{at}: ")))
                    continue
                reasons = sample_problems(sample, root, settings, reserved, headers=headers)
                problems += [RowProblem(source, at, reason) for reason in reasons]
                unknown.update(sample.unknown_keys)
            if not num_rows:
                problems.append(RowProblem(source, path, "holds no rows; correct it, or take it out of the mixture"))
        except ValueError as error:
            problems.append(RowProblem(source, path, str(error).removeprefix(f"{path}: ")))
    notes = tuple(f"the key {name!r} is not used; {count:,} rows have it" for name, count in sorted(unknown.items()))
    return CheckedFile(source, path, num_rows, tuple(problems), notes)


def sample_problems(
    sample: Sample, root: str, settings: DecodeSettings | None = None, reserved: ReservedText | None = None, *, headers: bool = False
) -> Iterator[str]:
    """What would make the index skip a sample.

    Args:
        sample: parsed.
        root: folder that its media lie below.
        settings: limits of media, and where those of object stores are fetched to; needed for headers.
        reserved: what no turn may hold; None: the names of the vision tokens.
        headers: also open every medium and read its header, within the limits.
    """
    learnt = [message for message in sample.messages if message.role != "assistant" or message.learn]
    if not any(message.role in ("assistant", "text", "tokens") for message in learnt):
        yield NOTHING_TO_LEARN
    elif not has_answer(sample):
        yield EMPTY_ANSWERS
    reserved = reserved or ReservedText(None)
    yield from filter(None, (reserved.problem(message.content) for message in sample.messages))
    if sample.messages[0].role == "tokens":
        return  # tags are tokens here, which only indexing with the tokenizer counts
    for kind, paths in (("image", sample.images), ("video", sample.videos)):
        tags = sum(message.content.count(f"<{kind}>") for message in sample.messages)
        if tags != len(paths):
            yield f"found {tags} <{kind}> tags for {len(paths)} {kind}s, expected one tag each"
        for path in paths:
            try:
                resolve(path if settings is None else fetch_medium(path, root, settings), root)
                if settings is not None and headers and kind == "image":
                    get_decoder(settings).probe_picture(path, root)
                elif settings is not None and headers:
                    get_decoder(settings).probe_video(path, root)
                    if not settings.by_time and get_decoder(settings).is_uneven(path, root):
                        yield f"video {path!r}: its frames are not spaced evenly in time; data.frame_sampler=time covers it evenly"
            except MediaError as error:
                yield f"{kind} {path!r}: {error.reason}"
