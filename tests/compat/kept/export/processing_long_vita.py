"""Messages, pictures and videos to model inputs, for transformers. Prompt ids equal those of training for the same messages.

This file travels with exported checkpoints. Shapes: B texts, T tokens, N tiles of all texts, L tokens per tile.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
from transformers import BatchFeature, ProcessorMixin

# transformers 4.57 and 5.0 copy only what this file itself imports, not what its neighbours import: name every neighbour here.
from .chat_template import CHAT_TEMPLATES
from .frames import SAMPLERS
from .image_processing_long_vita import LongVitaImageProcessor
from .tiling import TILINGS  # noqa: F401
from .token_layout import MediaLayout, VisionTokenIds, expand, image_layout, in_tag_order, video_layout
from .video_reading import read_video

logger = logging.getLogger(__name__)

# Training tokenises what follows a role header apart from the header; "\n" twice must not merge into one token.
_HEADER = re.compile(r"(<\|im_start\|>[^\n<]*\n)")
_VIDEO_PATH = re.compile(r"<video_path>(.*?)<video_path>")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_IGNORED = frozenset(
    ("add_special_tokens", "return_attention_mask", "return_mm_token_type_ids", "return_token_type_ids", "sampling_rate")
    + ("do_sample_frames", "video_metadata", "return_metadata", "load_audio_from_video")
)


class _Sequence(NamedTuple):
    """One text, expanded."""

    token_ids: list[int]
    tile_starts: list[int]
    tiles: list[np.ndarray]


class LongVitaProcessor(ProcessorMixin):
    """Tokenizer and tiles in one call.

    Args:
        image_processor, tokenizer: the parts.
        tokens_per_tile: context tokens of a tile.
        max_frames, max_fps: most frames taken from a video, and per second of it.
        frame_sampler: "uniform" or "legacy", see frames.py.
        template: name of the chat template that the model was trained with, see chat_template.py.
        chat_template: jinja text; that of `template` if left out.
    """

    attributes = ["image_processor", "tokenizer"]
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        image_processor: Optional[LongVitaImageProcessor] = None,
        tokenizer: Any = None,
        tokens_per_tile: int = 256,
        max_frames: int = 64,
        max_fps: float = 1.0,
        frame_sampler: str = "uniform",
        template: str = "qwen2",
        chat_template: Optional[str] = None,
        **kwargs: Any,
    ) -> None:
        if template not in CHAT_TEMPLATES:
            raise ValueError(f"template is {template!r}; expected one of {', '.join(CHAT_TEMPLATES)}")
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATES[template])
        if frame_sampler not in SAMPLERS:
            raise ValueError(f"frame_sampler is {frame_sampler!r}; expected one of {', '.join(SAMPLERS)}")
        self.tokens_per_tile = tokens_per_tile
        self.max_frames = max_frames
        self.max_fps = max_fps
        self.frame_sampler = frame_sampler
        self.template = template

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "images", "image_indices"]

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        videos: Any = None,
        audio: Any = None,
        *,
        audios: Any = None,
        padding: bool | str | None = None,
        padding_side: str = "left",
        truncation: Any = None,
        max_length: Optional[int] = None,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Expand the tags of one or several texts.

        Args:
            images: pictures (path, URL, PIL, array) in the order of the <image> tags: one, a list, or a list per text.
            text: one text or several, with <image> and <video> tags.
            videos: the same for <video> tags; a video is a file, a folder of frames, or a list of frames.
            audio, audios: must be empty.
            padding: texts of one call are padded to one length unless this is False; "max_length" pads to `max_length`.
            padding_side: "left" (default; what generate() needs) or "right".
            truncation, max_length: a longer prompt is an error where truncation is asked for: cutting would part tiles from tokens.
            return_tensors: "pt" for tensors, None for lists.
            kwargs: `num_frames` and `fps` override max_frames and max_fps.

        Returns:
            input_ids [B, T], attention_mask [B, T]; with media also images float32 [N, 3, H, W] and image_indices int64
            [2, N, L], the batch row and the position of each tile token.

        Raises:
            ValueError: tags and media do not match, or a medium is unreadable.
        """
        if text is None:
            raise ValueError("the processor needs `text`; for pictures alone use its image_processor")
        options = _flat_options(kwargs)
        if any(value is not None and len(value) for value in (audio, audios)):
            raise ValueError("found audio; Long-VITA takes pictures and videos only")
        frames = {"max_frames": options.pop("num_frames", None), "max_fps": options.pop("fps", None)}
        unknown = sorted(set(options) - _IGNORED)
        if unknown:
            logger.warning("LongVitaProcessor ignores %s", ", ".join(unknown))
        texts = [text] if isinstance(text, str) else list(text)
        texts, videos = _take_video_paths(texts, videos)
        ids = VisionTokenIds.from_lookup(self.tokenizer.get_vocab().get)
        tokens = [self._tokenize(part) for part in texts]
        pictures = _per_text(images, [seq.count(ids.image_tag) for seq in tokens], "image", _is_list)
        clips = _per_text(videos, [seq.count(ids.video_tag) for seq in tokens], "video", _is_list_of_videos)
        parts = [self._expand(seq, ids, p, v, frames) for seq, p, v in zip(tokens, pictures, clips)]
        length = self._length(parts, padding, truncation, max_length)
        return BatchFeature(self._collate(parts, length, padding_side), tensor_type=return_tensors)

    def apply_chat_template(self, conversation: Any, chat_template: Optional[str] = None, **kwargs: Any) -> Any:
        """As transformers' own; content given as plain text works on every version."""
        return super().apply_chat_template(_with_parts(conversation), chat_template, **kwargs)

    def _tokenize(self, text: str) -> list[int]:
        pieces = [piece for piece in _HEADER.split(text) if piece]
        return [token for piece in pieces for token in self.tokenizer(piece, add_special_tokens=False)["input_ids"]]

    def _expand(
        self, tokens: list[int], ids: VisionTokenIds, images: Sequence[Any], videos: Sequence[Any], frames: dict[str, Any]
    ) -> _Sequence:
        cut = [self.image_processor.tile_image(image) for image in images]
        clips = [self._video_tiles(video, frames) for video in videos]
        image_layouts = [image_layout(ids, len(tiles), grid, self.tokens_per_tile) for tiles, grid in cut]
        video_layouts = [video_layout(ids, len(tiles), self.tokens_per_tile) for tiles in clips]
        media: list[MediaLayout] = in_tag_order(tokens, ids, image_layouts, video_layouts)
        expanded = expand(tokens, ids, media)
        next_image, next_clip = iter([tiles for tiles, _ in cut]), iter(clips)
        tags = [token for token in tokens if token in (ids.image_tag, ids.video_tag)]
        tiles = [next(next_image if tag == ids.image_tag else next_clip) for tag in tags]
        return _Sequence(expanded.token_ids, expanded.tile_starts, tiles)

    def _video_tiles(self, video: Any, frames: dict[str, Any]) -> np.ndarray:
        pictures = read_video(
            video,
            max_frames=frames["max_frames"] or self.max_frames,
            max_fps=frames["max_fps"] or self.max_fps,
            sampler=self.frame_sampler,
        )
        return self.image_processor.tile_frames(pictures)

    def _length(self, parts: Sequence[_Sequence], padding: Any, truncation: Any, max_length: Optional[int]) -> Optional[int]:
        """Common length of the batch, None to leave every text as long as it is."""
        longest = max(len(part.token_ids) for part in parts)
        if truncation not in (None, False, "do_not_truncate") and max_length is not None and longest > max_length:
            raise ValueError(f"the prompt has {longest} tokens, max_length is {max_length}; use fewer frames or tiles: tiles cannot be cut")
        if padding is False or padding == "do_not_pad":
            return None
        if padding == "max_length" and max_length is not None:
            return max(longest, max_length)
        return longest

    def _collate(self, parts: Sequence[_Sequence], length: Optional[int], side: str) -> dict[str, Any]:
        pad = self.tokenizer.pad_token_id
        if pad is None:
            raise ValueError("the tokenizer has no pad_token; set it to the token that packs are filled up with")
        input_ids, mask, rows, positions = [], [], [], []
        for row, part in enumerate(parts):
            missing = 0 if length is None else length - len(part.token_ids)
            before, after = (missing, 0) if side == "left" else (0, missing)
            input_ids.append([pad] * before + part.token_ids + [pad] * after)
            mask.append([0] * before + [1] * len(part.token_ids) + [0] * after)
            rows += [row] * len(part.tile_starts)
            positions += [before + start for start in part.tile_starts]
        data: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask}
        if positions:
            position_NL = np.asarray(positions, dtype=np.int64)[:, None] + np.arange(self.tokens_per_tile, dtype=np.int64)
            row_NL = np.broadcast_to(np.asarray(rows, dtype=np.int64)[:, None], position_NL.shape)
            data["images"] = np.concatenate([tiles for part in parts for tiles in part.tiles])
            data["image_indices"] = np.stack([row_NL, position_NL])
        return data


def _flat_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """transformers' nested text_kwargs, images_kwargs ... laid flat; None means not given."""
    flat: dict[str, Any] = {}
    for name, value in kwargs.items():
        if name.endswith("_kwargs"):
            flat.update(value or {})
        else:
            flat[name] = value
    return {name: value for name, value in flat.items() if value is not None}


def _take_video_paths(texts: list[str], videos: Any) -> tuple[list[str], Any]:
    """Remove the published template's <video_path>...<video_path>; they are used only where no videos are given."""
    if not any("<video_path>" in text for text in texts):
        return texts, videos
    if videos is None or len(videos) == 0:
        videos = [_VIDEO_PATH.findall(text) for text in texts]
    return [_VIDEO_PATH.sub("", text) for text in texts], videos


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _is_list_of_videos(value: Any) -> bool:
    """A list of videos, rather than one video as a list of frames."""
    if not _is_list(value) or not value:
        return _is_list(value)
    if all(isinstance(item, str) for item in value):
        return not all(item.lower().endswith(_IMAGE_SUFFIXES) for item in value)
    return not all(hasattr(item, "size") and not _is_list(item) and getattr(item, "ndim", 3) == 3 for item in value)


def _per_text(media: Any, num_tags: Sequence[int], name: str, is_list: Any) -> list[list[Any]]:
    """Media as one list per text: given so, or flat in the order of the tags."""
    if media is None:
        media = []
    if not is_list(media):
        media = [media]
    media = [item for item in media if item is not None]
    if len(media) == len(num_tags) and all(is_list(item) for item in media):
        return [list(item) for item in media]
    flat = list(_flatten(media, is_list))
    if len(flat) != sum(num_tags):
        raise ValueError(f"found {sum(num_tags)} <{name}> tags for {len(flat)} {name}s, expected one tag each")
    rest = iter(flat)
    return [[next(rest) for _ in range(count)] for count in num_tags]


def _flatten(media: Any, is_list: Any) -> Iterator[Any]:
    for item in media:
        if is_list(item):
            yield from _flatten(item, is_list)
        elif item is not None:
            yield item


def _with_parts(conversation: Any) -> Any:
    """Plain-text content as a list of one text part: transformers 4.57 iterates over content."""
    if isinstance(conversation, dict):
        content = conversation.get("content")
        if isinstance(content, str):
            return {**conversation, "content": [{"type": "text", "text": content}]}
        return conversation
    if isinstance(conversation, (list, tuple)):
        return [_with_parts(item) for item in conversation]
    return conversation


Long_vitaProcessor = LongVitaProcessor
