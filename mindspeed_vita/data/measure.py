"""What one sample costs, before any stage's settings: tokens and media of each turn, sizes from media headers. Nothing is decoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Union

from mindspeed_vita.data.media.decoder import Job, get_decoder
from mindspeed_vita.data.media.limits import DecodeSettings
from mindspeed_vita.data.media.paths import MediaError
from mindspeed_vita.data.media.video import VideoHeader
from mindspeed_vita.data.sample import Sample, has_answer
from mindspeed_vita.data.templates import ChatTemplate
from mindspeed_vita.hf.token_layout import PLACEHOLDERS, ReservedText, VisionTokenIds

NOTHING_TO_LEARN = "no assistant turn that is learnt, so there is nothing to learn"
EMPTY_ANSWERS = "every answer is empty, so there is nothing to learn"

MOST_MEDIA = 16_384
"""Pictures, or videos, of one sample. With 258 tokens each, so many take four million tokens."""

Header = Union[tuple[int, int], VideoHeader]
"""(width, height) of a picture, or what a video's header says."""


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
        self._size = len(tokenizer)
        self._placeholders = frozenset(ids.placeholders)
        self._reserved = ReservedText(tokenizer)

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
        headers: dict[tuple[str, bool], Header | MediaError] = {}
        outcomes = [_problem(sample) or sample for sample in samples]
        boxed = [found for found in outcomes if isinstance(found, Sample) and found.boxes]
        self._look(((path, False) for sample in boxed for path in sample.images), root, headers)
        outcomes = [_located(found, headers) if isinstance(found, Sample) else found for found in outcomes]
        texts = [self._text(found) if isinstance(found, Sample) else found for found in outcomes]
        measured = [sample for sample, text in zip(samples, texts) if isinstance(text, Measured)]
        self._look((key for sample in measured for key in _media(sample)), root, headers)
        return [
            _with_media(text, [headers[key] for key in _media(sample)]) if isinstance(text, Measured) else text
            for sample, text in zip(samples, texts)
        ]

    def _look(self, media: Iterable[tuple[str, bool]], root: str, headers: dict[tuple[str, bool], Header | MediaError]) -> None:
        """Adds the headers of media that are not known yet."""
        wanted = [key for key in dict.fromkeys(media) if key not in headers]
        if wanted:
            jobs = [Job.header(path, root, is_video) for path, is_video in wanted]
            headers.update(zip(wanted, get_decoder(self._decoding).headers(jobs)))

    def _text(self, sample: Sample) -> Measured | MediaError:
        """The turns of a sample, without its media."""
        for message in sample.messages:
            reason = self._reserved.problem(message.content)
            if reason is not None:
                return MediaError("", reason)
        ids = self._ids
        turns = self._template.encode_turns(sample.messages, self._tokenizer)
        images = tuple(turn.count(ids.image_tag) for turn, _ in turns)
        videos = tuple(turn.count(ids.video_tag) for turn, _ in turns)
        for kind, found, given in (("image", sum(images), sample.images), ("video", sum(videos), sample.videos)):
            if found != len(given):
                return MediaError("", f"found {found} <{kind}> tags for {len(given)} {kind}s, expected one tag each")
        if any(turn and not 0 <= min(turn) <= max(turn) < self._size for turn, _ in turns):
            outside = next(token for turn, _ in turns for token in turn if not 0 <= token < self._size)
            return MediaError("", f"found the token {outside}, the tokenizer has {self._size:,} from 0; tokenise with data.tokenizer")
        if not all(self._placeholders.isdisjoint(turn) for turn, _ in turns):
            return MediaError("", f"the row holds a reserved token ({', '.join(PLACEHOLDERS)}); remove it")
        answers = tuple(True in supervised for _, supervised in turns)
        if not any(answers):
            return MediaError("", NOTHING_TO_LEARN)
        if not has_answer(sample):
            return MediaError("", EMPTY_ANSWERS)
        return Measured(
            turn_tokens=tuple(len(turn) - pictures - clips for (turn, _), pictures, clips in zip(turns, images, videos)),
            turn_images=images,
            turn_videos=videos,
            turn_answers=answers,
            sizes=(),
            videos=(),
        )


def _problem(sample: Sample) -> MediaError | None:
    """What is wrong with the lists of its media."""
    for name, paths in (("images", sample.images), ("videos", sample.videos)):
        if "" in paths:
            return MediaError("", f"entry {paths.index('') + 1} of {name} is null or empty; expected a path")
        if len(paths) > MOST_MEDIA:
            return MediaError("", f"found {len(paths):,} {name}; a sample may have {MOST_MEDIA:,}, and no pack holds more")
    return None


def _located(sample: Sample, headers: Mapping[tuple[str, bool], Header | MediaError]) -> Sample | MediaError:
    """The sample with its boxes as text. They are measured by the sizes of its pictures."""
    if not sample.boxes:
        return sample
    found = [headers[path, False] for path in sample.images]
    error = next((header for header in found if isinstance(header, MediaError)), None)
    if error is not None:
        return error
    try:
        return sample.located([header for header in found if isinstance(header, tuple)])
    except ValueError as wrong:
        return MediaError("", str(wrong))


def _media(sample: Sample) -> list[tuple[str, bool]]:
    """Path, and whether it is a video, of each medium."""
    return [*((path, False) for path in sample.images), *((path, True) for path in sample.videos)]


def _with_media(text: Measured, headers: Sequence[Header | MediaError]) -> Measured | MediaError:
    """The measurement with its media, or the first error among them."""
    error = next((header for header in headers if isinstance(header, MediaError)), None)
    if error is not None:
        return error
    return replace(
        text,
        sizes=tuple(header for header in headers if isinstance(header, tuple)),
        videos=tuple(header for header in headers if isinstance(header, VideoHeader)),
    )
