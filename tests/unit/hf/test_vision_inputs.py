"""Tiling and normalisation: bit for bit the published processor's, and the same in training and in an exported folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mindspeed_vita.checkpoint.hf.export import export_hf
from mindspeed_vita.checkpoint.hf.load import import_hf
from mindspeed_vita.config import recipe_from_dict, validate
from mindspeed_vita.data.assemble import Medium, assemble_pack, encode_sample
from mindspeed_vita.data.media.fast_resize import cut_tiles_fast
from mindspeed_vita.data.media.limits import media_limits
from mindspeed_vita.data.prepare import decode_settings
from mindspeed_vita.data.sample import Message, Sample
from mindspeed_vita.data.templates import get_template
from mindspeed_vita.data.tokenizer import vision_token_ids
from mindspeed_vita.hf.choices import TILINGS
from mindspeed_vita.hf.tiling import BACKGROUND, NORMALIZATIONS, background, cut_tiles, image_tiles, normalize
from mindspeed_vita.inference.hf_generate import load_processor
from mindspeed_vita.ops.normalize import normalize_tiles
from tests.tiny_checkpoint import TINY, random_weights, tiny_recipe

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "data" / "vision_inputs.json").read_text())["cases"]


def _picture(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    channels = [(3 * x + 5 * y) % 256, (x * y // 16) % 256, (x // 7 * 31 + y // 5 * 17) % 256]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['normalization']}-{case['size'][0]}x{case['size'][1]}")
def test_tiles_equal_the_published_ones(tiling: str, case: dict[str, Any]) -> None:
    limits = {name: case[name] for name in ("tile_size", "min_tiles", "max_tiles")}
    tiles, grid = image_tiles(_picture(*case["size"]), tiling=tiling, colour=background(case["normalization"]), **limits)
    assert list(grid) == case[tiling]["grid"]
    normalized = normalize(tiles, case["normalization"])
    assert hashlib.sha256(np.ascontiguousarray(normalized, dtype="<f4").tobytes()).hexdigest() == case[tiling]["tiles_sha256"]
    assert np.array_equal(normalize_tiles(torch.from_numpy(tiles), case["normalization"]).numpy(), normalized), "the device's own"


def test_the_published_normalisation_colours() -> None:
    found = {name: background(name) for name in NORMALIZATIONS}
    assert found == {"imagenet": BACKGROUND, "clip": (122, 116, 104), "siglip": (127, 127, 127)}


@pytest.mark.parametrize("tiling", ["anyres", "fixed"])
@pytest.mark.parametrize("wanted", [range(1), range(1, 3), range(3)])
def test_some_tiles_equal_those_of_the_whole(tiling: str, wanted: range) -> None:
    grid = (1, 1) if tiling == "fixed" else (2, 1)
    if tiling == "fixed":
        wanted = range(1)
    whole = cut_tiles(_picture(70, 30), grid, tile_size=28, tiling=tiling)
    assert np.array_equal(cut_tiles(_picture(70, 30), grid, tile_size=28, tiling=tiling, wanted=wanted), whole[wanted.start : wanted.stop])


@pytest.mark.parametrize("tiling", TILINGS)
def test_the_fast_resize_stays_near(tiling: str) -> None:
    y, x = np.mgrid[0:60, 0:100]
    smooth = Image.fromarray(np.stack([x * 2, y * 3, x + y], axis=-1).astype(np.uint8))
    grid = (1, 1) if tiling == "fixed" else (2, 1)
    exact = cut_tiles(smooth, grid, tile_size=56, tiling=tiling).astype(int)
    fast = cut_tiles_fast(smooth, grid, tile_size=56, wanted=range(len(exact)), tiling=tiling).astype(int)
    # worst measured: 2 on pictures; padding is cut a pixel's share differently, which shows at its edge only
    assert (np.abs(exact - fast) > 2).mean() < (0 if tiling == "dynamic" else 0.05) + 1e-9


@pytest.mark.parametrize(("tiling", "normalization"), [("anyres", "siglip"), ("fixed", "clip"), ("dynamic", "imagenet")])
def test_training_and_the_exported_processor_agree(tiling: str, normalization: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    """Tokens and tiles of a picture and of a film, from the pack on one side and from the exported folder on the other."""
    from transformers import AutoProcessor, AutoTokenizer

    model = replace(TINY, vision=replace(TINY.vision, normalization=normalization))
    recipe = tiny_recipe(model, tiling=tiling)
    export_hf(random_weights(model), recipe, tmp_path / "out", tokenizer=AutoTokenizer.from_pretrained(tokenizer_folder))
    (tmp_path / "film").mkdir()
    _picture(70, 45).save(tmp_path / "p.png")
    for number in range(3):
        _picture(40 + number, 30).save(tmp_path / "film" / f"{number}.png")
    again = import_hf(tmp_path / "out")
    assert again.model.vision.normalization == normalization and again.data.tiling == tiling

    messages = [Message("user", "<image><video>\nWhat?"), Message("assistant", "A")]
    loaded = AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)
    pack = _pack(recipe, loaded.tokenizer, Sample(tuple(messages), ("p.png",), ("film",)), tmp_path)
    for processor in (loaded, load_processor(tmp_path / "out")):
        text = processor.apply_chat_template([{"role": m.role, "content": m.content} for m in messages])
        found = processor(text=text, images=[str(tmp_path / "p.png")], videos=[str(tmp_path / "film")], return_tensors="pt")
        assert found["input_ids"][0].tolist() == pack.tokens_T[: int(pack.sample_cu[-1])].tolist()
        assert torch.equal(torch.as_tensor(found["images"]), normalize_tiles(pack.tiles_NCHW, normalization))


def _pack(recipe: Any, tokenizer: Any, sample: Sample, root: Path) -> Any:
    from mindspeed_vita.data.media.video import probe_video

    data, size = recipe.data, recipe.model.vision.tile_size
    limits = media_limits(data, tokens_per_tile=recipe.model.tokens_per_tile, tile_size=size)
    header = probe_video("film", str(root))
    media = [Medium("p.png", limits.grid((70, 45), data.max_tiles), None, ()), Medium("film", None, header, (0, 1, 2))]
    encoded = encode_sample(
        sample, media, tokenizer=tokenizer, template=get_template("qwen2"), ids=vision_token_ids(tokenizer), limits=limits,
        sample_id=0, source_id=0, source="s", root=str(root),
    )  # fmt: skip
    decoding = decode_settings(data, recipe.model.vision.normalization)
    return assemble_pack([encoded], seq_length=256, resets=True, pad_id=0, context_ids=(), tile_size=size, decoding=decoding)


@pytest.mark.parametrize(
    ("section", "key", "value"), [("data", "tiling", "squares"), ("vision", "normalization", "openai")], ids=["tiling", "normalization"]
)
def test_unknown_names_are_refused_when_the_recipe_is_read(section: str, key: str, value: str) -> None:
    content = {"data": {key: value}} if section == "data" else {"model": {"vision": {key: value}}}
    with pytest.raises(ValueError, match=f"{key}='{value}'; expected one of"):
        validate(recipe_from_dict(content))
