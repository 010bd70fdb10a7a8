"""Looks through every row of every file of a mixture for what would stop or shrink a run: schema, tags, missing media. No tokenizer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mindspeed_vita.config.recipe import DataConfig
from mindspeed_vita.data.formats import adapter_for
from mindspeed_vita.data.media.decoder import get_decoder
from mindspeed_vita.data.media.limits import DecodeSettings
from mindspeed_vita.data.media.paths import MediaError, resolve
from mindspeed_vita.data.mixture import SourceSpec, load_mixture
from mindspeed_vita.data.prepare import decode_settings, media_root
from mindspeed_vita.data.rows import iter_rows, parse_row, row_place
from mindspeed_vita.data.sample import Sample


@dataclass(frozen=True)
class Finding:
    """What is wrong with one row, or with a file as a whole."""

    source: str
    where: str
    """File and line."""
    reason: str


@dataclass(frozen=True)
class FileReport:
    """One file of the mixture."""

    source: str
    path: str
    num_rows: int
    findings: tuple[Finding, ...]


def check_mixture(data: DataConfig, *, headers: bool = False) -> Iterator[FileReport]:
    """Checks each file in turn; goes on after what it finds.

    Args:
        data: the recipe's section.
        headers: also open every picture and video and read its header.

    Raises:
        ValueError: the mixture itself is wrong.
    """
    for spec in load_mixture(data.mixture):
        for path in spec.paths:
            yield _check_file(spec, path, media_root(data, path, spec.format), decode_settings(data), headers)


def _check_file(spec: SourceSpec, path: str, root: str, settings: DecodeSettings, headers: bool) -> FileReport:
    source, findings, num_rows = spec.name, [], 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            _, is_array, rows = iter_rows(path, Path(folder) / "rows", adapter_for(path, spec.format))
            for row in rows:
                num_rows += 1
                at = row_place(path, row.place, is_array)
                try:
                    sample = parse_row(row.text, path, row.place, is_array)
                except ValueError as error:
                    findings.append(Finding(source, at, str(error).removeprefix(f"{at}: ")))
                    continue
                findings += [Finding(source, at, reason) for reason in sample_problems(sample, root, settings if headers else None)]
        except ValueError as error:
            findings.append(Finding(source, path, str(error).removeprefix(f"{path}: ")))
    return FileReport(source, path, num_rows, tuple(findings))


def sample_problems(sample: Sample, root: str, settings: DecodeSettings | None = None) -> Iterator[str]:
    """What would make the index skip a sample.

    Args:
        sample: parsed.
        root: folder that its media lie below.
        settings: given: also open every medium and read its header, within these limits.
    """
    if not any(message.role == "assistant" for message in sample.messages):
        yield "no assistant turn, so there is nothing to learn"
    for kind, paths in (("image", sample.images), ("video", sample.videos)):
        tags = sum(message.content.count(f"<{kind}>") for message in sample.messages)
        if tags != len(paths):
            llava = f"; a row with {kind!r} instead of '{kind}s' is in LLaVA's layout: convert the file with vita data import"
            yield f"found {tags} <{kind}> tags for {len(paths)} {kind}s, expected one tag each{llava if not paths else ''}"
        for path in paths:
            try:
                resolve(path, root)
                if settings is not None and kind == "image":
                    get_decoder(settings).probe_picture(path, root)
                elif settings is not None:
                    get_decoder(settings).probe_video(path, root)
                    if not settings.by_time and get_decoder(settings).is_uneven(path, root):
                        yield f"video {path!r}: its frames are not spaced evenly in time; data.frame_sampler=time covers it evenly"
            except MediaError as error:
                yield f"{kind} {path!r}: {error.reason}"
