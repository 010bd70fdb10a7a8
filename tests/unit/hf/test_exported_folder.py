"""An exported folder under transformers, as remote code: auto classes, pipeline, saving again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, pipeline

from mindspeed_vita.checkpoint.hf.load import import_hf
from mindspeed_vita.data.tokenizer import load_tokenizer
from mindspeed_vita.hf.modeling_long_vita import LongVITAForCausalLM
from mindspeed_vita.inference.hf_generate import load_hf, load_processor
from mindspeed_vita.inference.request import ask

REMOTE = {"trust_remote_code": True}


@pytest.fixture(scope="module")
def loaded(exported: Path) -> tuple[Any, Any]:
    model = AutoModelForImageTextToText.from_pretrained(exported, **REMOTE).eval()
    return model, AutoProcessor.from_pretrained(exported, **REMOTE)


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText])
def test_auto_classes_give_the_generating_model_with_all_weights(exported: Path, auto: Any) -> None:
    model, info = auto.from_pretrained(exported, output_loading_info=True, **REMOTE)
    assert type(model).__name__ == "LongVITAForCausalLM" and "transformers_modules" in type(model).__module__
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert callable(model.generate) and model.config.image_token_id != model.config.patch_token_id


def test_config_and_processor_load(exported: Path) -> None:
    config = AutoConfig.from_pretrained(exported, **REMOTE)
    processor = AutoProcessor.from_pretrained(exported, **REMOTE)
    assert config.model_type == "long_vita" and config.tokens_per_tile == 4
    assert config.to_dict()["rope_theta"] == 5e5
    assert (processor.tokens_per_tile, processor.max_frames) == (4, 4)
    assert (processor.image_processor.tile_size, processor.image_processor.max_tiles) == (28, 4)


def test_remote_model_equals_the_packages_own(exported: Path, loaded: tuple[Any, Any], pictures: dict[str, Any]) -> None:
    model, processor = loaded
    inputs = processor(text="<image>\nWhat?", images=pictures["wide"], return_tensors="pt")
    own = LongVITAForCausalLM.from_pretrained(exported).eval()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, own(**inputs).logits)


def test_tokenizer_of_the_folder_gives_the_ids_of_training(exported: Path, tokenizer_folder: Path, loaded: tuple[Any, Any]) -> None:
    trained = load_tokenizer(tokenizer_folder)
    found = AutoTokenizer.from_pretrained(exported, **REMOTE)
    for text in ("It's 12 o'clock\n\n", "<|im_start|>user\n<image>\n猫 ünï<|im_end|>\n", "  spaces\tand\r\nlines \n"):
        assert found(text).input_ids == trained(text, add_special_tokens=False).input_ids
    assert len(found) == len(trained) and found.eos_token_id == trained.eos_token_id and found.pad_token_id == trained.pad_token_id
    assert loaded[1].tokenizer.padding_side == "left"


def test_pipeline_answers_about_pictures_and_videos(exported: Path, loaded: tuple[Any, Any], pictures: dict[str, Any]) -> None:
    model, processor = loaded
    ask = pipeline("image-text-to-text", model=str(exported), **REMOTE)
    wide, square, clip, frames = (pictures[name] for name in ("wide", "square_file", "clip", "frames"))
    cases = [
        ([{"type": "image", "image": wide}], {"images": [wide]}),
        ([{"type": "image", "image": wide}, {"type": "image", "path": square}], {"images": [wide, square]}),
        ([{"type": "video", "video": clip}], {"videos": [clip]}),
        ([{"type": "video", "path": frames}, {"type": "image", "image": wide}], {"videos": [frames], "images": [wide]}),
        ([], {}),
    ]
    for media, given in cases:
        content = [*media, {"type": "text", "text": "What is it?"}]
        said = ask(text=[{"role": "user", "content": content}], max_new_tokens=5, return_full_text=False)[0]["generated_text"]
        tags = "".join(f"<{item['type']}>\n" for item in media)
        text = f"<|im_start|>user\n{tags}What is it?<|im_end|>\n<|im_start|>assistant\n"
        inputs = processor(text=text, return_tensors="pt", **given)
        tokens = model.generate(**inputs, max_new_tokens=5)[0, inputs["input_ids"].shape[1] :]
        assert said == processor.decode(tokens, skip_special_tokens=True)


def test_pipeline_takes_plain_text_content(exported: Path) -> None:
    ask = pipeline("image-text-to-text", model=str(exported), **REMOTE)
    assert ask(text=[{"role": "user", "content": "Hello"}], max_new_tokens=2, return_full_text=False)[0]["generated_text"] is not None


def test_placeholders_are_never_generated(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    inputs = processor(text="Hi", return_tensors="pt")
    banned = list(model.config.context_token_ids)
    step = model.generate(**inputs, max_new_tokens=3, output_scores=True, return_dict_in_generate=True)
    assert all(torch.isneginf(scores[0, banned]).all() for scores in step.scores)


def test_saved_again_it_loads_again(loaded: tuple[Any, Any], pictures: dict[str, Any], tmp_path: Path) -> None:
    model, processor = loaded
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    ours = load_processor(tmp_path)
    imported = import_hf(tmp_path).data
    again = AutoModelForCausalLM.from_pretrained(tmp_path, **REMOTE).eval()
    inputs = AutoProcessor.from_pretrained(tmp_path, **REMOTE)(text="<image>\nWhat?", images=pictures["wide"], return_tensors="pt")

    assert config["architectures"] == ["LongVITAForCausalLM"] and config["rope_theta"] == 5e5
    # transformers 5 has moved the tiles to processor_config.json
    assert (ours.image_processor.max_tiles, ours.max_frames) == (imported.max_tiles, imported.max_frames) == (4, 4)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_a_folder_that_transformers_saved_again_answers_alike(
    exported: Path, loaded: tuple[Any, Any], pictures: dict[str, Any], tmp_path: Path
) -> None:
    for part in loaded:
        part.save_pretrained(tmp_path)
    request = ask("What is it?", [pictures["wide_file"]])
    assert load_hf(tmp_path).generate(request, max_new_tokens=4) == load_hf(exported).generate(request, max_new_tokens=4)


def test_this_transformers_is_one_we_support() -> None:
    major, minor = map(int, re.match(r"(\d+)\.(\d+)", transformers.__version__).groups())  # type: ignore[union-attr]
    assert (4, 57) <= (major, minor) < (6, 0)
