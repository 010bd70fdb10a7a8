"""preprocessor_config.json and processor_config.json of a Hugging Face folder, written and read: how pictures and videos are cut."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.checkpoint.hf.config import auto_map
from mindspeed_vita.checkpoint.hf.tokenizer import write_json
from mindspeed_vita.config import language_traits
from mindspeed_vita.config.recipe import DataConfig, ModelConfig
from mindspeed_vita.hf.frame_pooling import read_pooling

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
_SETTINGS = ("tiling", "pixels", "min_tiles", "max_tiles", "max_frames", "max_fps", "frame_sampler", "template")


def write_processor(folder: Path, model: ModelConfig, data: DataConfig, frame_pooling: Optional[str] = None) -> None:
    """Write both files. transformers 5 would nest the first in the second, which 4.57 cannot read; all versions read both.

    Args:
        folder: of the export.
        model: sizes.
        data: how pictures and videos are cut.
        frame_pooling: see frame_pooling.py; None writes no such key, as before there was one.

    Raises:
        ValueError: frames cannot be pooled so.
    """
    read_pooling(frame_pooling, model.tokens_per_tile)
    own = auto_map(language_traits(model.language.family).hf_base)["AutoProcessor"]
    preprocessor = {
        "auto_map": {
            "AutoImageProcessor": "image_processing_long_vita.LongVitaImageProcessor",
            "AutoProcessor": own,
        },
        "image_processor_type": "LongVitaImageProcessor",
        "processor_class": "LongVitaProcessor",
        "tile_size": model.vision.tile_size,
        "tiling": data.tiling,
        "pixels": data.pixels,
        "normalization": model.vision.normalization,
        "min_tiles": data.min_tiles,
        "max_tiles": data.max_tiles,
    }
    processor = {
        "auto_map": {"AutoProcessor": own},
        "processor_class": "LongVitaProcessor",
        "tokens_per_tile": model.tokens_per_tile,
        "max_frames": data.max_frames,
        "max_fps": data.max_fps,
        "frame_sampler": data.frame_sampler,
        "template": data.template,
        **({} if frame_pooling is None else {"frame_pooling": frame_pooling}),
    }
    write_json(folder / PREPROCESSOR, preprocessor)
    write_json(folder / PROCESSOR, processor)


def read_processor(folder: Path) -> DataConfig:
    """What a folder says about tiles and frames, written by us or saved again by transformers 5; defaults where it says nothing.

    Raises:
        ValueError: a file is not JSON.
    """
    processor = read_json(folder / PROCESSOR) if (folder / PROCESSOR).is_file() else {}
    preprocessor = read_json(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else {}
    found: Mapping[str, Any] = {**preprocessor, **(processor.get("image_processor") or {}), **processor}
    return DataConfig(**{name: found[name] for name in _SETTINGS if name in found})


def read_frame_pooling(folder: Path) -> Optional[str]:
    """How a folder's processor pools the frames of videos, or None where it does not say.

    Raises:
        ValueError: the file is not JSON, or the value is no text.
    """
    path = folder / PROCESSOR
    found = read_json(path).get("frame_pooling") if path.is_file() else None
    if found is not None and not isinstance(found, str):
        raise ValueError(f"{path} has frame_pooling {found!r}; expected a text such as slow_fast:every=4,factor=4")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a folder.

    Raises:
        ValueError: not JSON, or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}; expected an object")
    return content
