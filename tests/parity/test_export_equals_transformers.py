"""The native model and its export give the same logits and answers on text, tiled pictures and a video."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mindspeed_vita.checkpoint.hf.export import export_hf
from mindspeed_vita.checkpoint.hf.load import import_hf
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.config import RopeScalingConfig
from mindspeed_vita.inference.generate import NativeGenerator
from mindspeed_vita.inference.hf_generate import load_hf
from mindspeed_vita.inference.request import Request, ask
from tests.parity.native_model import native_model
from tests.tiny_checkpoint import TINY, make_tokenizer, random_weights, tiny_recipe


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Request:
    """Text, a picture of several tiles and a thumbnail, a picture of one tile, and a folder of frames."""
    folder = tmp_path_factory.mktemp("probe")
    draw = np.random.default_rng(3)
    for name, size in (("wide.png", (60, 90)), ("square.png", (50, 50))):
        Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / "clip").mkdir()
    for number in range(3):
        Image.fromarray(draw.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / "clip" / f"{number}.png")
    images = [str(folder / "wide.png"), str(folder / "square.png")]
    return ask("Look at <image>, at <video>\nand at <image>. What is it?", images, [str(folder / "clip")])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_logits_of_a_multimodal_probe_agree_to_1e4(tmp_path: Path, probe: Request, tokenizer: Any) -> None:
    weights, recipe = random_weights(), tiny_recipe()
    export_hf(weights, recipe, tmp_path / "out", tokenizer=tokenizer)
    exported = load_hf(tmp_path / "out")
    text = exported.processor.apply_chat_template(
        [{"role": "user", "content": probe.messages[0].content}], add_generation_prompt=True
    )
    inputs = exported.processor(text=text, images=list(probe.images), videos=list(probe.videos), return_tensors="pt")

    with torch.no_grad(), native_model(TINY, weights, recipe) as (model, layout):
        generator = NativeGenerator(model, layout, recipe, tokenizer, torch.device("cpu"))
        batch = generator.prompt(probe)
        assert batch.tokens_T.tolist() == inputs["input_ids"][0].tolist()
        found = generator.logits(generator.inputs(batch), torch.arange(len(batch.tokens_T)))
        expected = exported.model(**inputs).logits[0]
        answers = [one.generate(probe, max_new_tokens=8) for one in (generator, exported)]

    # Measured 1.1e-6 at logits up to 3.8: fp32, other orders of summation.
    assert (found - expected).abs().max() <= 1e-4
    assert expected.abs().max() > 1
    assert answers[0] == answers[1] and len(answers[0].token_ids) == 8


def test_native_to_hugging_face_and_back_is_exact(tmp_path: Path, tokenizer: Any) -> None:
    weights, recipe = random_weights(), tiny_recipe()
    native.save_full_weights(tmp_path / "native", weights, recipe)
    stored, _ = native.read_full_weights(tmp_path / "native")
    export_hf(stored, recipe, tmp_path / "out", tokenizer=tokenizer, max_shard_bytes=60_000)
    back = import_hf(tmp_path / "out")
    native.save_full_weights(tmp_path / "again", back.weights, recipe)
    again, _ = native.read_full_weights(tmp_path / "again")

    assert again.keys() == weights.keys()
    assert max(float((again[name] - weights[name]).abs().max()) for name in weights) == 0.0


def test_blank_pictures_change_the_logits(tmp_path: Path, probe: Request, tokenizer: Any) -> None:
    """The probe is worth something: what is seen reaches the logits."""
    export_hf(random_weights(), tiny_recipe(), tmp_path / "out", tokenizer=tokenizer)
    exported = load_hf(tmp_path / "out")
    inputs = exported.processor(text="<image> <image> <video>", images=list(probe.images), videos=list(probe.videos), return_tensors="pt")
    with torch.no_grad():
        seen = exported.model(**inputs).logits
        blind = exported.model(**{**inputs, "images": torch.zeros_like(inputs["images"])}).logits
    assert (seen - blind)[0, -1].abs().max() > 0.1


@pytest.mark.parametrize("beyond", [-9, -1, 3, 7, 60], ids=lambda beyond: f"original_positions={beyond:+d}")
def test_longrope_chooses_by_the_tokens_there_are(tmp_path: Path, tokenizer: Any, beyond: int) -> None:
    """Before, across and after the change of frequencies; transformers recomputes as well, since its cache keeps the old angles."""
    request, weights, recipe = ask("How many?"), random_weights(), tiny_recipe()
    with native_model(TINY, weights, recipe) as (model, layout):
        prompt = len(NativeGenerator(model, layout, recipe, tokenizer, torch.device("cpu")).prompt(request).tokens_T)
    factors = {"short_factor": (1.0,) * 4, "long_factor": (4.0, 3.0, 6.0, 9.0)}
    scaling = RopeScalingConfig(kind="longrope", factor=8.0, original_positions=prompt + beyond, **factors)
    config = replace(TINY, language=replace(TINY.language, rope_scaling=scaling))
    recipe = tiny_recipe(config)
    export_hf(weights, recipe, tmp_path / "out", tokenizer=tokenizer)
    exported = load_hf(tmp_path / "out")
    exported.model.generation_config.use_cache = False
    with native_model(config, weights, recipe) as (model, layout):
        found = NativeGenerator(model, layout, recipe, tokenizer, torch.device("cpu")).generate(request, max_new_tokens=8)
    assert found == exported.generate(request, max_new_tokens=8)
    assert len(found.token_ids) == 8
