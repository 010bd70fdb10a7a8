"""What every transformers line is shown: some exported folders, and what the installed transformers and our own code compute from them.

Usage: python -m tests.hf_matrix.world FOLDER     makes it all in FOLDER
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mindspeed_vita.checkpoint.hf.config import hf_config
from mindspeed_vita.checkpoint.hf.export import export_hf
from mindspeed_vita.checkpoint.hf.internvl_files import INTERNVL_LAYOUT
from mindspeed_vita.config import ModelConfig, RopeScalingConfig
from mindspeed_vita.data.templates import get_template
from mindspeed_vita.inference.hf_generate import load_hf
from mindspeed_vita.ops.rotary import RotaryTables
from tests.tiny_checkpoint import TINY, make_tokenizer, random_weights, tiny_recipe

IDS = {"bos": 0, "eos": 0, "pad": 0, "image": 1, "video": 2, "patch": 3}
SHORT, LONG = (1.0, 1.1, 1.2, 1.3), (1.0, 2.0, 4.0, 8.0)
ROPES = {
    "none": RopeScalingConfig(),
    "linear": RopeScalingConfig(kind="linear", factor=4.0),
    "ntk": RopeScalingConfig(kind="ntk", factor=8.0),
    "yarn": RopeScalingConfig(kind="yarn", factor=4.0, original_positions=1024),
    "yarn-set": RopeScalingConfig(kind="yarn", factor=4.0, original_positions=1024, beta_fast=16.0, attention_factor=1.25),
    "llama3": RopeScalingConfig(kind="llama3", factor=8.0, original_positions=1024),
    # the factor is not the ratio of the two lengths, which some versions would take for it
    "longrope": RopeScalingConfig(kind="longrope", factor=32.0, original_positions=1024, short_factor=SHORT, long_factor=LONG),
}
POSITIONS = [[0, 1, 5, 900], [0, 1, 900, 4000]]
OTHER = replace(
    TINY,
    vision=replace(TINY.vision, tower="siglip", normalization="siglip", qk_norm=True, norm="rms_norm"),
    projector=replace(TINY.projector, kind="mlp_newline"),
    # together the heads are half as wide as the hidden size
    language=replace(TINY.language, family="qwen3", head_width=8, num_heads=2),
)
SERVED = {
    "internvl-qwen2": TINY,
    "internvl-qwen3": replace(TINY, language=replace(TINY.language, family="qwen3", head_width=12, tie_embeddings=True)),
    # a rotary table, a tower and a projector with all that InternVL can say
    "internvl-yarn": replace(
        TINY,
        vision=replace(TINY.vision, qk_norm=True, norm="rms_norm", qkv_bias=False, normalization="clip"),
        projector=replace(TINY.projector, hidden_size=32, pixel_shuffle=4),
        language=replace(TINY.language, rope_scaling=ROPES["yarn"]),
    ),
}
"""Models that are exported in InternVL's layout."""
EXPORTS: dict[str, tuple[ModelConfig, dict[str, Any]]] = {
    "usual": (TINY, {}),
    "other": (OTHER, {"tiling": "anyres", "template": "llama3"}),
    "pooled": (TINY, {}),
}
"""The usual export, one with another decoder, tower, projector, tiling and chat template, and one that pools frames of videos."""
POOLING = {"pooled": "slow_fast:every=2,factor=2"}


def make(folder: Path) -> None:
    """Write a folder for each of EXPORTS (exports), one for each of SERVED (internvl-*), pictures, and reference.pt."""
    draw = np.random.default_rng(5)
    (folder / "frames").mkdir(parents=True)
    Image.fromarray(draw.integers(0, 256, (40, 80, 3), dtype=np.uint8)).save(folder / "wide.png")
    for number in range(3):
        Image.fromarray(draw.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / "frames" / f"{number}.png")
    reference: dict[str, Any] = {"ropes": {}}
    for name, (model, data) in EXPORTS.items():
        recipe, tokenizer = tiny_recipe(model, **data), make_tokenizer(folder / f"{name}-tokenizer")
        template = get_template(recipe.data.template)
        tokenizer.add_tokens([*template.special_tokens, template.pad_token], special_tokens=True)
        options: dict[str, Any] = {"max_shard_bytes": 90_000, "frame_pooling": POOLING.get(name)}
        export_hf(random_weights(model), recipe, folder / name, tokenizer=tokenizer, **options)
        reference[name] = _answer(folder, name)
    for name, model in SERVED.items():
        recipe, tokenizer = tiny_recipe(model), make_tokenizer(folder / f"{name}-tokenizer")
        export_hf(random_weights(model), recipe, folder / name, tokenizer=tokenizer, layout=INTERNVL_LAYOUT)
        export_hf(random_weights(model), recipe, folder / f"{name}-ours", tokenizer=tokenizer)
        reference[name] = _in_float64(folder, f"{name}-ours")
    for name, scaling in ROPES.items():
        language = replace(TINY.language, rope_scaling=scaling)
        tables = [torch.stack(RotaryTables(language)(torch.tensor(places), places[-1] + 1)) for places in POSITIONS]
        reference["ropes"][name] = (hf_config(replace(TINY, language=language), token_ids=IDS, dtype="float32"), tables)
    torch.save(reference, folder / "reference.pt")


def question(folder: Path) -> dict[str, Any]:
    """One prompt about a picture and a video, as arguments of a processor."""
    text = "<|im_start|>user\n<image>\nand <video>\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    return {"text": text, "images": [str(folder / "wide.png")], "videos": [str(folder / "frames")], "return_tensors": "pt"}


def _answer(folder: Path, name: str) -> dict[str, torch.Tensor]:
    ours = load_hf(folder / name)
    inputs = ours.processor(**question(folder))
    with torch.no_grad():
        logits = ours.model(**inputs).logits
    assert logits.abs().max() > 1
    tokens = ours.model.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
    return {"input_ids": inputs["input_ids"], "logits": logits, "tokens": tokens}


def _in_float64(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Logits of our code, with and without tiles. InternVL has one context token where our layout has three."""
    ours = load_hf(folder / name)
    inputs, model = ours.processor(**question(folder)), ours.model.double()
    ids, tiles = inputs["input_ids"], inputs["images"].double()
    with torch.no_grad():
        logits = model(**{**inputs, "images": tiles}).logits
        text = model(input_ids=torch.arange(40)[None]).logits
    assert logits.abs().max() > 1
    config = model.config
    one_token = torch.where(torch.isin(ids, torch.tensor(config.context_token_ids)), config.image_token_id, ids)
    return {"input_ids": one_token, "tiles": tiles, "logits": logits, "text": text}


if __name__ == "__main__":
    make(Path(sys.argv[1]))
