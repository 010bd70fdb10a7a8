"""What one sample costs, before any stage's settings: tokens and media of each turn, sizes from media headers. Nothing is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mindspeed_vita.data.media.decoder import Job, get_decoder
from mindspeed_vita.data.media.limits import DecodeSettings
from mindspeed_vita.data.media.paths import MediaError
from mindspeed_vita.data.media.video import VideoHeader
from mindspeed_vita.data.sample import Sample
from mindspeed_vita.data.templates import ChatTemplate
from mindspeed_vita.hf.token_layout import VisionTokenIds

MOST_MEDIA = 16_384
"""Pictures, or videos, of one sample. With 258 tokens each, so many take four million tokens."""


@dataclass(frozen=True)
class Measured:
    """One sample: its turns, then its media (pictures, then videos)."""

    turn_tokens: tuple[int, ...]
    """Text tokens of each turn, tags left out."""
    turn_images: tuple[int, ...]
    turn_videos: tuple[int, ...]
    turn_answers: tuple[bool, ...]
    """Whether the turn is the assistant's."""
    sizes: tuple[tuple[int, int], ...]
    """(width, height) of each picture."""
    videos: tuple[VideoHeader, ...]


class Measurer:
    """Measures samples. Media headers are read in the decoder process, within its limits of time and memory."""

    def __init__(self, *, tokenizer: Any, template: ChatTemplate, ids: VisionTokenIds, decoding: DecodeSettings) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._ids = ids
        self._decoding = decoding

    def measure(self, sample: Sample, root: str) -> Measured:
        """Tokens and headers of one sample; arguments are those of measure_all.

        Raises:
            MediaError: it cannot be used.
        """
        (found,) = self.measure_all([sample], root)
        if isinstance(found, MediaError):
            raise found
        return found

    def measure_all(self, samples: Sequence[Sample], root: str) -> list[Measured | MediaError]:
        """Tokens and headers of each sample, or why it cannot be used.

        The error has a path where a picture or video is at fault, and none where the row itself is. A medium that several samples
        name is looked at once.

        Args:
            samples: parsed rows.
            root: folder that their media lie below.
        """
        texts = [self._text(sample) for sample in samples]
        wanted: dict[tuple[str, bool], Job] = {}
        for sample, text in zip(samples, texts):
            if isinstance(text, Measured):
                wanted.update((key, Job.header(key[0], root, key[1])) for key in _media(sample) if key not in wanted)
        headers = dict(zip(wanted, get_decoder(self._decoding).headers(list(wanted.values())) if wanted else ()))
        return [
            _with_media(text, [headers[key] for key in _media(sample)]) if isinstance(text, Measured) else text
            for sample, text in zip(samples, texts)
        ]

    def _text(self, sample: Sample) -> Measured | MediaError:
        """The turns of a sample, without its media."""
        for name, paths in (("images", sample.images), ("videos", sample.videos)):
            if "" in paths:
                return MediaError("", f"entry {paths.index('') + 1} of {name} is null or empty; expected a path")
            if len(paths) > MOST_MEDIA:
                return MediaError("", f"found {len(paths):,} {name}; a sample may have {MOST_MEDIA:,}, and no pack holds more")
        ids = self._ids
        turns = self._template.encode_turns(sample.messages, self._tokenizer)
        images = tuple(turn.count(ids.image_tag) for turn, _ in turns)
        videos = tuple(turn.count(ids.video_tag) for turn, _ in turns)
        for kind, found, given in (("image", sum(images), sample.images), ("video", sum(videos), sample.videos)):
            if found != len(given):
                return MediaError("", f"found {found} <{kind}> tags for {len(given)} {kind}s, expected one tag each")
        if any(token in turn for token in ids.placeholders for turn, _ in turns):
            return MediaError("", "the text holds a reserved token (<IMG_CONTEXT>, <VID_CONTEXT> or <PATCH_CONTEXT>); remove it")
        answers = tuple(any(supervised) for _, supervised in turns)
        if not any(answers):
            return MediaError("", "no assistant turn, so there is nothing to learn")
        return Measured(
            turn_tokens=tuple(len(turn) - pictures - clips for (turn, _), pictures, clips in zip(turns, images, videos)),
            turn_images=images,
            turn_videos=videos,
            turn_answers=answers,
            sizes=(),
            videos=(),
        )


def _media(sample: Sample) -> list[tuple[str, bool]]:
    """Path, and whether it is a video, of each medium."""
    return [*((path, False) for path in sample.images), *((path, True) for path in sample.videos)]


def _with_media(text: Measured, headers: Sequence[tuple[int, int] | VideoHeader | MediaError]) -> Measured | MediaError:
    """The measurement with its media, or the first error among them."""
    error = next((header for header in headers if isinstance(header, MediaError)), None)
    if error is not None:
        return error
    return replace(
        text,
        sizes=tuple(header for header in headers if isinstance(header, tuple)),
        videos=tuple(header for header in headers if isinstance(header, VideoHeader)),
    )
