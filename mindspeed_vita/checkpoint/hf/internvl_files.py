"""The InternVL layout of an export: the files that transformers, vLLM and SGLang load as InternVL, without remote code.

The model computes what ours does. InternVL's processor lays pictures and videos out in another way, see docs/guides/serve_elsewhere.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import torch

from mindspeed_vita.checkpoint.hf.generation import generation_config, special_ids
from mindspeed_vita.checkpoint.hf.internvl_config import CHAT_MODEL_TYPE, check_internvl, internvl_config, internvl_model
from mindspeed_vita.checkpoint.hf.layout import Layout
from mindspeed_vita.checkpoint.hf.processor import PREPROCESSOR, PROCESSOR, read_json
from mindspeed_vita.checkpoint.hf.tokenizer import TOKENIZER_FILES, write_json, write_tokenizer
from mindspeed_vita.checkpoint.lineage import LINEAGE
from mindspeed_vita.config import language_names, language_traits
from mindspeed_vita.config.recipe import DataConfig, ModelConfig, Recipe
from mindspeed_vita.files.safetensors_folder import SafetensorsFolder
from mindspeed_vita.hf.chat_template import CHAT_TEMPLATES
from mindspeed_vita.hf.tiling import NORMALIZATIONS

VIDEO_PREPROCESSOR = "video_preprocessor_config.json"
_PROCESSOR_CLASS = "InternVLProcessor"
_NAMED_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
"""What InternVLProcessor asks its tokenizer for. These four tokens are called alike in Long-VITA and InternVL."""
_BICUBIC = 3


def write_internvl_files(
    folder: Path, recipe: Recipe, tokenizer: Any, dtype: torch.dtype, frame_pooling: Optional[str] = None
) -> None:
    """Everything but the weights: configuration, tokenizer, processor and chat template.

    Raises:
        ValueError: frames are to be pooled, which InternVL's processor cannot do.
    """
    if frame_pooling is not None:
        raise ValueError(f"frame_pooling={frame_pooling!r}: InternVL's processor cannot pool frames; leave it out with --to internvl")
    template = recipe.data.template
    config = internvl_config(recipe.model, token_ids=special_ids(tokenizer, recipe), dtype=str(dtype).removeprefix("torch."))
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation_config(tokenizer, recipe))
    named = {"processor_class": _PROCESSOR_CLASS, "extra_special_tokens": _NAMED_TOKENS, "additional_special_tokens": None}
    write_tokenizer(tokenizer, folder, template, named)
    _write_processor(folder, recipe.model, recipe.data)
    text = CHAT_TEMPLATES[template].replace("<image>", _NAMED_TOKENS["context_image_token"])
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")


def _write_processor(folder: Path, model: ModelConfig, data: DataConfig) -> None:
    mean, deviation = NORMALIZATIONS[model.vision.normalization]
    pixels = {
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(deviation),
        "rescale_factor": 1 / 255,
        "resample": _BICUBIC,
        "size": {"height": model.vision.tile_size, "width": model.vision.tile_size},
        "processor_class": _PROCESSOR_CLASS,
    }
    tiles = {"crop_to_patches": True, "min_patches": data.min_tiles, "max_patches": data.max_tiles}
    write_json(folder / PREPROCESSOR, {"image_processor_type": "GotOcr2ImageProcessor", **tiles, **pixels})
    write_json(folder / VIDEO_PREPROCESSOR, {"video_processor_type": "InternVLVideoProcessor", **pixels})
    write_json(folder / PROCESSOR, {"processor_class": _PROCESSOR_CLASS, "image_seq_length": model.tokens_per_tile})


def internvl_family(folder: Path, config: Mapping[str, Any]) -> str:
    """Which of InternVL's layouts the weights of a folder have, see mapping/internvl.py."""
    if config.get("model_type") == CHAT_MODEL_TYPE:
        return "internvl_chat"
    return "internvl_model" if any(name.startswith("model.") for name in SafetensorsFolder(folder)) else "internvl"


def read_internvl_data(folder: Path, config: Mapping[str, Any]) -> DataConfig:
    """How a folder of InternVL cuts pictures, as far as our settings can say it. Frames of videos stay at the released settings.

    Raises:
        ValueError: a file is not JSON.
    """
    processor = read_json(folder / PROCESSOR) if (folder / PROCESSOR).is_file() else {}
    preprocessor = read_json(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else {}
    found: Mapping[str, Any] = {**preprocessor, **(processor.get("image_processor") or {})}
    chat = {"min_patches": config.get("min_dynamic_patch", 1), "max_patches": config.get("max_dynamic_patch", 12)}
    tiles = {ours: found.get(theirs, chat[theirs]) for ours, theirs in (("min_tiles", "min_patches"), ("max_tiles", "max_patches"))}
    text = config.get("text_config") or config.get("llm_config") or {}
    for traits in map(language_traits, language_names()):
        if traits.hf_model_type == text.get("model_type"):
            return DataConfig(template=traits.template, **tiles)
    return DataConfig(**tiles)


def _check(recipe: Recipe) -> None:
    check_internvl(recipe.model, recipe.data)


INTERNVL_LAYOUT = Layout(
    family="internvl",
    files=frozenset(
        (*TOKENIZER_FILES, PREPROCESSOR, PROCESSOR, VIDEO_PREPROCESSOR, "verification.json", LINEAGE)
        + ("config.json", "generation_config.json", "chat_template.jinja", "model.safetensors.index.json")
    ),
    title="transformers' InternVLForConditionalGeneration, without remote code",
    usage="""
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("FOLDER")  # needs torchvision
model = AutoModelForImageTextToText.from_pretrained("FOLDER", dtype="auto")
content = [{"type": "image", "url": "picture.jpg"}, {"type": "text", "text": "What is it?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
)
print(processor.decode(model.generate(**inputs, max_new_tokens=64)[0, inputs["input_ids"].shape[1] :]))
""",
    check=_check,
    write_side_files=write_internvl_files,
    read_model=internvl_model,
)
"""--to internvl."""
