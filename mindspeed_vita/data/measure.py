"""What one sample costs, before any stage's settings: tokens and media of each turn, sizes from media headers. Nothing is decoded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from mindspeed_vita.data.media.decoder import get_decoder
from mindspeed_vita.data.media.image import probe_picture
from mindspeed_vita.data.media.limits import DecodeSettings
from mindspeed_vita.data.media.paths import MediaError, resolve
from mindspeed_vita.data.media.video import VideoHeader, probe_video
from mindspeed_vita.data.sample import Sample
from mindspeed_vita.data.templates import ChatTemplate
from mindspeed_vita.hf.token_layout import VisionTokenIds


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
    """Measures samples one at a time."""

    def __init__(self, *, tokenizer: Any, template: ChatTemplate, ids: VisionTokenIds, decoding: DecodeSettings) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._ids = ids
        self._decoding = decoding

    def measure(self, sample: Sample, root: str) -> Measured:
        """Tokens and headers of a sample.

        Args:
            sample: parsed row.
            root: folder that its media lie below.

        Raises:
            MediaError: it cannot be used. With a path where a picture or video is at fault, without where the row itself is.
        """
        for name, paths in (("images", sample.images), ("videos", sample.videos)):
            if "" in paths:
                raise MediaError("", f"entry {paths.index('') + 1} of {name} is null or empty; expected a path")
        ids = self._ids
        turns = self._template.encode_turns(sample.messages, self._tokenizer)
        images = tuple(turn.count(ids.image_tag) for turn, _ in turns)
        videos = tuple(turn.count(ids.video_tag) for turn, _ in turns)
        for kind, found, given in (("image", sum(images), sample.images), ("video", sum(videos), sample.videos)):
            if found != len(given):
                raise MediaError("", f"found {found} <{kind}> tags for {len(given)} {kind}s, expected one tag each")
        if any(token in turn for token in ids.placeholders for turn, _ in turns):
            raise MediaError("", "the text holds a reserved token (<IMG_CONTEXT>, <VID_CONTEXT> or <PATCH_CONTEXT>); remove it")
        answers = tuple(any(supervised) for _, supervised in turns)
        if not any(answers):
            raise MediaError("", "no assistant turn, so there is nothing to learn")
        return Measured(
            turn_tokens=tuple(len(turn) - pictures - clips for (turn, _), pictures, clips in zip(turns, images, videos)),
            turn_images=images,
            turn_videos=videos,
            turn_answers=answers,
            sizes=tuple(probe_picture(resolve(path, root), self._decoding) for path in sample.images),
            videos=tuple(self._probe_video(path, root) for path in sample.videos),
        )

    def _probe_video(self, path: str, root: str) -> VideoHeader:
        if os.path.isdir(resolve(path, root)):
            return probe_video(path, root, self._decoding)
        return get_decoder(self._decoding).probe_video(path, root)  # FFmpeg's demuxers hang and crash as its decoders do
