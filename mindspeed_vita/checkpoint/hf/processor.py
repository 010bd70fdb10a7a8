"""preprocessor_config.json and processor_config.json of a Hugging Face folder, written and read: how pictures and videos are cut."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindspeed_vita.checkpoint.hf.config import auto_map
from mindspeed_vita.checkpoint.hf.tokenizer import write_json
from mindspeed_vita.config import language_traits
from mindspeed_vita.config.recipe import DataConfig, ModelConfig

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
_SETTINGS = ("tiling", "pixels", "min_tiles", "max_tiles", "max_frames", "max_fps", "frame_sampler", "template")


def write_processor(folder: Path, model: ModelConfig, data: DataConfig) -> None:
    """Write both files. transformers 5 would nest the first in the second, which 4.57 cannot read; all versions read both."""
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
