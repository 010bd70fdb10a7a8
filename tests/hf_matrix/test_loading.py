"""Every auto class, the pipeline, saving and loading again, and the numbers of the installed transformers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, pipeline

# transformers 5.4 to 5.12 replace the name at their top level by a placeholder where torchvision is missing
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

REMOTE = {"trust_remote_code": True}


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText])
def test_model_classes(exported: str, auto: Any) -> None:
    model, info = auto.from_pretrained(exported, output_loading_info=True, **REMOTE)
    assert type(model).__name__ == "LongVITAForCausalLM" and callable(model.generate)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_config_tokenizer_and_processors(exported: str) -> None:
    assert "torchvision" not in sys.modules
    assert AutoConfig.from_pretrained(exported, **REMOTE).tokens_per_tile == 4
    assert AutoTokenizer.from_pretrained(exported, **REMOTE)("<image>").input_ids
    assert AutoImageProcessor.from_pretrained(exported, **REMOTE).tile_size == 28
    processor = AutoProcessor.from_pretrained(exported, **REMOTE)
    assert (processor.tokens_per_tile, processor.image_processor.max_tiles) == (4, 4)


@pytest.mark.parametrize("name", ["usual", "other", "pooled"])
def test_same_numbers_as_the_installed_transformers(world: Path, name: str) -> None:
    from tests.hf_matrix.world import question

    expected = torch.load(world / "reference.pt")[name]
    model = AutoModelForCausalLM.from_pretrained(world / name, **REMOTE).eval()
    inputs = AutoProcessor.from_pretrained(world / name, **REMOTE)(**question(world))
    with torch.no_grad():
        logits = model(**inputs).logits
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    # 1e-5 leaves room for another order of summation; measured 0.0
    torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=1e-5)
    tokens = model.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
    assert torch.equal(tokens, expected["tokens"])


def test_rotary_tables(world: Path, exported: str) -> None:
    from tests.hf_matrix.world import POSITIONS

    config_class = type(AutoConfig.from_pretrained(exported, **REMOTE))
    for config, tables in torch.load(world / "reference.pt")["ropes"].values():
        for places, table in zip(POSITIONS, tables):
            found = Qwen2RotaryEmbedding(config_class(**config))(torch.zeros(1), torch.tensor([places]))
            torch.testing.assert_close(torch.stack(found)[:, 0], table, rtol=0, atol=1e-6)


def test_pipeline(exported: str, world: Path, clip: str, processor: Any) -> None:
    ask = pipeline("image-text-to-text", model=exported, **REMOTE)
    wide, frames = str(world / "wide.png"), str(world / "frames")
    cases = [
        ([{"type": "image", "image": wide}], {"images": [wide]}),
        ([{"type": "image", "path": wide}, {"type": "video", "path": frames}], {"images": [wide], "videos": [frames]}),
        ([{"type": "video", "video": clip}], {"videos": [clip]}),
        ([], {}),
    ]
    for parts, given in cases:
        content = [*parts, {"type": "text", "text": "What is it?"}]
        said = ask(text=[{"role": "user", "content": content}], max_new_tokens=4, return_full_text=False)[0]["generated_text"]
        tags = "".join(f"<{item['type']}>\n" for item in parts)
        inputs = processor(text=f"<|im_start|>user\n{tags}What is it?<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt", **given)
        tokens = ask.model.generate(**inputs, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :]
        assert said == processor.decode(tokens, skip_special_tokens=True)


def test_saved_and_loaded_again(model: Any, processor: Any, inputs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    processor.save_pretrained(tmp_path)
    again, own = AutoModelForCausalLM.from_pretrained(tmp_path, **REMOTE).eval(), AutoProcessor.from_pretrained(tmp_path, **REMOTE)
    assert (own.image_processor.max_tiles, own.max_frames, own.tokens_per_tile) == (4, 4, 4)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
