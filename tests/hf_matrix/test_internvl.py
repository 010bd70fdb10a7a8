"""An export in InternVL's layout under transformers' own classes: logits, tokenizer, chat template, tiles and the order of its tokens.

torchvision has no build here. transformers' AutoProcessor needs it for videos, so InternVLProcessor is tested without its video processor.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

# transformers 5.4 to 5.12 replace the name at their top level by a placeholder where torchvision is missing
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.internvl.processing_internvl import InternVLProcessor

from mindspeed_vita.hf.tiling import choose_grid, image_tiles, normalize
from tests.hf_matrix.world import SERVED

QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]


class WithoutVideos(InternVLProcessor):
    """transformers' processor, which may lack its video processor."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return type(argument)


@pytest.fixture(scope="module")
def processor(world: Path) -> Any:
    folder = world / "internvl-qwen2"
    if transformers.__version__.startswith("5.4."):
        pytest.skip("transformers 5.4 finds InternVL's image processor only where torchvision is installed")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return WithoutVideos(AutoImageProcessor.from_pretrained(folder), tokenizer, None, 4, tokenizer.chat_template)


@pytest.mark.parametrize("name", SERVED)
def test_logits_in_float64_are_ours_on_text_and_on_given_tiles(world: Path, name: str) -> None:
    expected = torch.load(world / "reference.pt")[name]
    model, info = AutoModelForImageTextToText.from_pretrained(world / name, dtype=torch.float64, output_loading_info=True)
    assert type(model).__name__ == "InternVLForConditionalGeneration" and not any(info.values())
    assert type(model).__module__.startswith("transformers.models.internvl")
    with torch.no_grad():
        seen = model.eval()(input_ids=expected["input_ids"], pixel_values=expected["tiles"]).logits
        text = model(input_ids=torch.arange(40)[None]).logits
    assert torch.equal(text, expected["text"])
    # transformers' RMSNorm of a tower computes in float32 whatever the model's type is: 6.5e-7 measured. All else is equal.
    largest = (seen - expected["logits"]).abs().max()
    assert largest <= (2e-6 if SERVED[name].vision.qk_norm else 0.0)


@pytest.mark.parametrize("name", SERVED)
def test_the_configuration_has_every_key_that_its_class_reads(world: Path, name: str) -> None:
    config = AutoConfig.from_pretrained(world / name)
    model = SERVED[name]
    assert config.image_seq_length == model.tokens_per_tile and config.tie_word_embeddings == model.language.tie_embeddings
    assert config.text_config.model_type == ("qwen3" if name == "internvl-qwen3" else "qwen2")
    assert list(config.vision_config.image_size) == [28, 28] and config.vision_config.use_qk_norm == model.vision.qk_norm


def test_tokenizer_and_template_name_the_tokens_of_internvl(world: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world / "internvl-qwen2")
    assert (tokenizer.start_image_token, tokenizer.end_image_token) == ("<img>", "</img>")
    assert (tokenizer.context_image_token, tokenizer.video_token) == ("<IMG_CONTEXT>", "<video>")
    assert tokenizer.context_image_token_id == AutoConfig.from_pretrained(world / "internvl-qwen2").image_token_id
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\n<IMG_CONTEXT>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"


def test_tiles_are_ours_to_the_bit_with_the_thumbnail_last(world: Path, processor: Any) -> None:
    picture = Image.open(world / "wide.png").convert("RGB")
    tiles, grid = image_tiles(picture, tile_size=28, max_tiles=4)
    ours = normalize(tiles)
    assert grid == (2, 1)
    question = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}]}]
    with warnings.catch_warnings():
        # 4.57 hands numpy a tensor
        warnings.filterwarnings("ignore", "__array_wrap__", DeprecationWarning)
        inputs = processor.apply_chat_template(question, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)
    assert np.array_equal(np.asarray(inputs["pixel_values"]), np.concatenate([ours[1:], ours[:1]]))
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    seen = f"<img>{'<IMG_CONTEXT>' * 12}</img>"
    assert text == f"<|im_start|>user\n{seen}\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"


def test_grids_are_ours_for_every_shape_of_picture(processor: Any) -> None:
    draw, cutter = np.random.default_rng(0), processor.image_processor
    sizes = [*draw.integers(1, 400, (400, 2)).tolist(), [28, 28], [56, 28], [84, 28], [640, 480], [480, 640]]
    for width, height in sizes:
        columns, rows = choose_grid(width, height, tile_size=28, max_tiles=12)
        wanted = columns * rows + (columns * rows > 1)
        assert cutter.get_number_of_image_patches(height, width, {"max_patches": 12, "crop_to_patches": True}) == wanted, (width, height)
