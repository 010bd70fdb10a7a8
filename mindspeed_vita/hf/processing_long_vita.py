"""Messages, pictures and videos to model inputs, for transformers. Prompt ids equal those of training for the same messages.

This file travels with exported checkpoints. Shapes: B texts, T tokens, N tiles of all texts, L tokens per tile.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
from transformers import BatchFeature, ProcessorMixin

# transformers 4.57 and 5.0 copy only what this file itself imports, not what its neighbours import: name every neighbour here.
from .chat_messages import answer_mask, answer_spans, media, texts_of, with_parts
from .chat_template import CHAT_TEMPLATES
from .choices import SAMPLERS
from .film import CONTAINERS  # noqa: F401
from .frame_pooling import read_pooling
from .frames import sample_file_frames  # noqa: F401
from .image_processing_long_vita import LongVitaImageProcessor
from .media_lists import VIDEO_PATH, is_list, is_list_of_videos, per_text, take_video_paths
from .pixels import to_rgb  # noqa: F401
from .tiling import normalize  # noqa: F401
from .token_layout import MediaLayout, ReservedText, VisionTokenIds, expand, image_layout, in_tag_order, video_layout
from .video_file import decode_file_frames  # noqa: F401
from .video_reading import read_video

logger = logging.getLogger(__name__)

# Training tokenises what follows a role header apart from the header; "\n" twice must not merge into one token.
_HEADER = re.compile(r"(<\|im_start\|>[^\n<]*\n)")
_CALL_OPTIONS = frozenset(("padding", "padding_side", "truncation", "max_length", "return_tensors", "num_frames", "fps", "frame_pooling"))
_LOADING = ("initial_shift", "video_load_backend", "sample_indices_fn")
"""Parameters of the published apply_chat_template that choose frames. There, too, the processor reads the video again by its own rule."""
_IGNORED = frozenset(
    ("add_special_tokens", "return_attention_mask", "return_mm_token_type_ids", "return_token_type_ids", "sampling_rate")
    + ("do_sample_frames", "video_metadata", "return_metadata", "load_audio_from_video", "return_text_replacement_offsets")
)


class _Sequence(NamedTuple):
    """One text, expanded."""

    token_ids: list[int]
    sources: list[int]
    """Index in the text's own tokens of what each token came from."""
    tile_starts: list[int]
    tiles: list[np.ndarray]
    tile_tokens: list[int]
    """Context tokens of each tile."""


class LongVitaProcessor(ProcessorMixin):
    """Tokenizer and tiles in one call.

    Args:
        image_processor, tokenizer: the parts.
        tokens_per_tile: context tokens of a tile.
        max_frames, max_fps: most frames taken from a video, and per second of it.
        frame_sampler: "uniform", "legacy" or "time", see frames.py.
        frame_pooling: pools the frames of videos, so that longer ones fit: "slow_fast:every=4,factor=4", see frame_pooling.py; None: none.
        template: name of the chat template that the model was trained with, see chat_template.py.
        chat_template: jinja text; that of `template` if left out.
        kwargs: `image_seq_length` is the published name of tokens_per_tile.
    """

    # transformers 4 needs these names. From 5 on, the signature of __init__ is enough; from 5.4 on, the names are deprecated, and
    # without torchvision "AutoImageProcessor" is a placeholder that cannot load.
    if hasattr(ProcessorMixin, "attributes"):
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
        frame_pooling: Optional[str] = None,
        **kwargs: Any,
    ) -> None:
        if template not in CHAT_TEMPLATES:
            raise ValueError(f"template is {template!r}; expected one of {', '.join(CHAT_TEMPLATES)}")
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATES[template])
        if frame_sampler not in SAMPLERS:
            raise ValueError(f"frame_sampler is {frame_sampler!r}; expected one of {', '.join(SAMPLERS)}")
        self.tokens_per_tile = kwargs.get("image_seq_length") or tokens_per_tile
        read_pooling(frame_pooling, self.tokens_per_tile)
        self.frame_pooling = frame_pooling
        self.max_frames = max_frames
        self.max_fps = max_fps
        self.frame_sampler = frame_sampler
        self.template = template

    @property
    def image_seq_length(self) -> int:
        """The published name of tokens_per_tile."""
        return self.tokens_per_tile

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
            images: pictures in the order of the <image> tags: one, a list, or a list per text. open_image() says what a picture may be.
            text: one text or several, with <image> and <video> tags.
            videos: the same for <video> tags; a video is a file, a folder of frames, or a list of frames.
            audio, audios: must be empty.
            padding: texts of one call are padded to one length unless this is False; "max_length" pads to `max_length`.
            padding_side: "left" (default; what generate() needs) or "right".
            truncation, max_length: a longer prompt is an error where truncation is asked for: cutting would part tiles from tokens.
            return_tensors: "pt" for tensors, None for lists.
            kwargs: `num_frames`, `fps` and `frame_pooling` override max_frames, max_fps and frame_pooling; `min_patches` and
                `max_patches` override the image processor's min_tiles and max_tiles, `crop_to_patches=False` means one tile;
                `return_offsets_mapping` asks for offset_mapping.

        Returns:
            input_ids [B, T], attention_mask [B, T]; with media also images float32 [N, 3, H, W] and image_indices int64
            [2, N, L], the batch row and the position of each tile token; the positions behind the tokens of a pooled frame are -1.
            offset_mapping [B, T, 2] is where in the text a token
            came from; the tokens of a medium came from its tag.

        Raises:
            ValueError: no text, tags and media that do not match, or an unreadable medium.
        """
        if text is None:
            raise ValueError("the processor needs `text`; for pictures alone use its image_processor")
        options = _flat_options(kwargs)
        if any(value is not None and len(value) for value in (audio, audios)):
            raise ValueError("found audio; Long-VITA takes pictures and videos only")
        frames = self._frame_limits(options.pop("num_frames", None), options.pop("fps", None))
        frames["pooling"] = read_pooling(options.pop("frame_pooling", self.frame_pooling), self.tokens_per_tile)
        tiles = {f"{limit}_tiles": options.pop(f"{limit}_patches", None) for limit in ("min", "max")}
        if not options.pop("crop_to_patches", True):
            tiles = {"min_tiles": 1, "max_tiles": 1}
        with_offsets = options.pop("return_offsets_mapping", False)
        unknown = sorted(set(options) - _IGNORED)
        if unknown:
            logger.warning("LongVitaProcessor ignores %s", ", ".join(unknown))
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(item, str) for item in texts):
            found = ", ".join(sorted({type(item).__name__ for item in texts})) or "an empty list"
            raise ValueError(f"found {found} as `text`; expected a text or a list of one or more; for messages use apply_chat_template")
        texts, videos = take_video_paths(texts, videos)
        ids = VisionTokenIds.from_lookup(self.tokenizer.get_vocab().get)
        tokens = [self._tokenize(part) for part in texts]
        pictures = per_text(images, [seq.count(ids.image_tag) for seq in tokens], "image", is_list)
        clips = per_text(videos, [seq.count(ids.video_tag) for seq in tokens], "video", is_list_of_videos)
        parts = [self._expand(seq, ids, p, v, frames, tiles) for seq, p, v in zip(tokens, pictures, clips)]
        length = self._length(parts, padding, truncation, max_length)
        data = self._collate(parts, length, padding_side)
        if with_offsets:
            data["offset_mapping"] = self._offset_mapping(texts, parts, length, padding_side)
        return BatchFeature(data, tensor_type=return_tensors)

    def apply_chat_template(self, conversation: Any, chat_template: Optional[str] = None, **kwargs: Any) -> Any:
        """As transformers' own; content may be plain text, parts (image_url among them) or None on every version.

        Of the published parameters, `num_frames` is used; initial_shift, video_load_backend and sample_indices_fn have no effect, as there.
        With `return_assistant_tokens_mask`, assistant_masks [B, T] is 1 for the tokens that training supervises: the assistant's
        turns with what ends them, or what the template marks by {% generation %} tags.

        Raises:
            ValueError: messages of another form, or a mask is asked for and tokenize or return_dict is not.
        """
        unused = [name for name in _LOADING if kwargs.pop(name, None) not in (None, "pyav")]
        if unused:
            logger.warning("LongVitaProcessor takes frames by its frame_sampler %r and ignores %s", self.frame_sampler, ", ".join(unused))
        conversation = with_parts(conversation)
        reserved = ReservedText(self.tokenizer)
        for text in texts_of(conversation):
            problem = reserved.problem(text)
            if problem is not None:
                raise ValueError(problem)
        marked = re.search(r"\{%-?\s*generation\b", str(chat_template or self.chat_template))
        if kwargs.get("return_assistant_tokens_mask") and not marked:
            return self._with_answer_mask(conversation, chat_template, **kwargs)
        return super().apply_chat_template(conversation, chat_template, **kwargs)

    def _with_answer_mask(self, conversation: Any, chat_template: Optional[str], **kwargs: Any) -> BatchFeature:
        del kwargs["return_assistant_tokens_mask"]
        if not kwargs.pop("tokenize", False) or not kwargs.pop("return_dict", True) or kwargs.get("add_generation_prompt"):
            raise ValueError(
                "return_assistant_tokens_mask needs tokenize=True and return_dict=True, and a conversation that ends with its last "
                "message: leave add_generation_prompt out"
            )
        nested = kwargs.pop("processor_kwargs", None) or {}
        options = {**{name: kwargs.pop(name) for name in _CALL_OPTIONS & set(kwargs)}, **nested}
        tensors = options.pop("return_tensors", None)

        def render(messages: Any, add_generation_prompt: bool) -> str:
            text = super(LongVitaProcessor, self).apply_chat_template(
                messages, chat_template, tokenize=False, add_generation_prompt=add_generation_prompt, **kwargs
            )
            return VIDEO_PATH.sub("", text)

        talks = [conversation] if isinstance(conversation[0], dict) else conversation
        texts, spans = zip(*(answer_spans(talk, render) for talk in talks))
        pictures, videos = ([media(talk, kind) for talk in talks] for kind in ("image", "video"))
        data = dict(self(text=list(texts), images=pictures, videos=videos, return_offsets_mapping=True, **options))
        data["assistant_masks"] = [answer_mask(*pair) for pair in zip(spans, data.pop("offset_mapping"))]
        return BatchFeature(data, tensor_type=tensors)

    def _frame_limits(self, num_frames: Any, fps: Any) -> dict[str, Any]:
        """Most frames of a video and per second of it, for one call."""
        for name, value in (("num_frames", num_frames), ("fps", fps)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value!r}; expected a number above 0, or None for the processor's own setting")
        limits = {"max_frames": num_frames, "max_fps": fps}
        return {name: getattr(self, name) if value is None else value for name, value in limits.items()}

    def _offset_mapping(
        self, texts: Sequence[str], parts: Sequence[_Sequence], length: Optional[int], side: str
    ) -> list[list[tuple[int, int]]]:
        mapping = []
        for text, part in zip(texts, parts):
            own, start = [], 0
            for piece in _HEADER.split(text):
                found = self.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"] if piece else []
                own += [(start + first, start + last) for first, last in found]
                start += len(piece)
            offsets = [own[source] for source in part.sources]
            missing = 0 if length is None else length - len(offsets)
            mapping.append([(0, 0)] * missing + offsets if side == "left" else offsets + [(start, start)] * missing)
        return mapping

    def _tokenize(self, text: str) -> list[int]:
        pieces = [piece for piece in _HEADER.split(text) if piece]
        return [token for piece in pieces for token in self.tokenizer(piece, add_special_tokens=False)["input_ids"]]

    def _expand(
        self, tokens: list[int], ids: VisionTokenIds, images: Sequence[Any], videos: Sequence[Any], frames: dict[str, Any], limits: Any
    ) -> _Sequence:
        cut = [self.image_processor.tile_image(image, **limits) for image in images]
        clips = [self._video_tiles(video, frames) for video in videos]
        image_layouts = [image_layout(ids, len(tiles), grid, self.tokens_per_tile) for tiles, grid in cut]
        factors = [frames["pooling"].factors(len(tiles)) for tiles in clips]
        video_layouts = [video_layout(ids, len(tiles), self.tokens_per_tile, each) for tiles, each in zip(clips, factors)]
        layouts: list[MediaLayout] = in_tag_order(tokens, ids, image_layouts, video_layouts)
        expanded = expand(tokens, ids, layouts)
        next_image, next_clip, lengths = iter([tiles for tiles, _ in cut]), iter(clips), iter([len(item.token_ids) for item in layouts])
        next_factors = iter(factors)
        sources: list[int] = []
        tiles = []
        tile_tokens: list[int] = []
        for place, token in enumerate(tokens):
            tag = token in (ids.image_tag, ids.video_tag)
            sources += [place] * (next(lengths) if tag else 1)
            if tag:
                tiles.append(next(next_image if token == ids.image_tag else next_clip))
                pooled = next(next_factors) if token == ids.video_tag else [1] * len(tiles[-1])
                tile_tokens += [self.tokens_per_tile // factor**2 for factor in pooled]
        return _Sequence(expanded.token_ids, sources, expanded.tile_starts, tiles, tile_tokens)

    def _video_tiles(self, video: Any, frames: dict[str, Any]) -> np.ndarray:
        pictures = read_video(video, max_frames=frames["max_frames"], max_fps=frames["max_fps"], sampler=self.frame_sampler)
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
            lengths_N = np.asarray([length for part in parts for length in part.tile_tokens])
            position_NL[np.arange(self.tokens_per_tile) >= lengths_N[:, None]] = -1
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


Long_vitaProcessor = LongVitaProcessor
