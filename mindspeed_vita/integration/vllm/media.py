"""What a server must know of pictures and videos: their tiles, and the tokens that stand for them. No vllm here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mindspeed_vita.checkpoint.hf.processor import read_frame_pooling, read_processor
from mindspeed_vita.hf.image_processing_long_vita import LongVitaImageProcessor
from mindspeed_vita.hf.processing_long_vita import LongVitaProcessor
from mindspeed_vita.hf.token_layout import VisionTokenIds, image_layout, image_token_count, video_layout

OPTIONS = ("min_tiles", "max_tiles", "max_frames")
"""Settings of the folder's processor that a server or a request may change."""


def build_processor(folder: str | Path, config: Any, tokenizer: Any, options: Mapping[str, Any]) -> LongVitaProcessor:
    """The processor of a folder, exported or released, from this package's classes: no code of the folder runs.

    Args:
        folder: on this machine.
        config: its configuration, see hf/configuration_long_vita.py.
        tokenizer: its tokenizer.
        options: those of OPTIONS that differ from the folder's.

    Raises:
        ValueError: no such folder, one whose frames are pooled, or an option that there is not.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder on this machine; download the model and give the folder")
    pooling = read_frame_pooling(folder)
    if pooling not in (None, "none"):
        raise ValueError(f"{folder} pools the frames of videos ({pooling}), which this plugin cannot do; export it again without")
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise ValueError(f"mm_processor_kwargs has {', '.join(unknown)}; a Long-VITA processor takes {', '.join(OPTIONS)}")
    data = read_processor(folder)
    settings = {name: options.get(name, getattr(data, name)) for name in OPTIONS}
    if not 1 <= settings["min_tiles"] <= settings["max_tiles"] or settings["max_frames"] < 1:
        raise ValueError(f"{settings}; expected 1 <= min_tiles <= max_tiles, and at least one frame")
    images = LongVitaImageProcessor(
        tile_size=config.vision_config.image_size,
        min_tiles=settings["min_tiles"],
        max_tiles=settings["max_tiles"],
        tiling=data.tiling,
        pixels=data.pixels,
        normalization=config.visual.get("normalization", "imagenet"),
    )
    return LongVitaProcessor(
        images,
        tokenizer,
        tokens_per_tile=config.tokens_per_tile,
        max_frames=settings["max_frames"],
        max_fps=data.max_fps,
        frame_sampler=data.frame_sampler,
        template=data.template,
    )


def token_ids(processor: LongVitaProcessor) -> VisionTokenIds:
    """Ids of the vision tokens."""
    return VisionTokenIds.from_lookup(processor.tokenizer.get_vocab().get)


def picture_tokens(processor: LongVitaProcessor, grid: Sequence[int]) -> list[int]:
    """What replaces an <image> tag.

    Args:
        processor: gives the ids.
        grid: (columns, rows) of the tiles.
    """
    columns, rows = (int(side) for side in grid)
    tiles = columns * rows
    return image_layout(token_ids(processor), tiles + (tiles > 1), (columns, rows), processor.tokens_per_tile).token_ids


def video_tokens(processor: LongVitaProcessor, num_frames: int) -> list[int]:
    """What replaces a <video> tag."""
    return video_layout(token_ids(processor), num_frames, processor.tokens_per_tile).token_ids


def frames_of(video: Any) -> list[Image.Image]:
    """Pictures of a video that a server decoded: an array uint8 [frames, height, width, 3], a list of pictures, or a pair of one of
    these and metadata.

    Raises:
        ValueError: something else.
    """
    frames = video[0] if isinstance(video, tuple) else video
    if isinstance(frames, (list, tuple)) and frames and all(isinstance(frame, Image.Image) for frame in frames):
        return list(frames)
    array = np.asarray(frames)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
        raise ValueError(f"found a video of {array.dtype} {array.shape}; expected uint8 (frames, height, width, 3)")
    return [Image.fromarray(frame) for frame in array]


def largest_picture(processor: LongVitaProcessor) -> tuple[int, int]:
    """(width, height) in pixels of a picture with as many tokens as a picture can have: a column of tiles has the most line feeds."""
    side, rows = processor.image_processor.tile_size, processor.image_processor.max_tiles
    return (side, side) if processor.image_processor.tiling == "fixed" else (side, side * rows)


def most_tokens(processor: LongVitaProcessor) -> dict[str, int]:
    """Most tokens of one picture, and of one video."""
    width, height = largest_picture(processor)
    picture = image_token_count((1, height // width), processor.tokens_per_tile)
    return {"image": picture, "video": processor.max_frames * (processor.tokens_per_tile + 2)}
