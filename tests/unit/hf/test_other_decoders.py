"""An export over another decoder than Qwen2 under transformers, as remote code: classes, logits, the cache, saving again, pickling."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

from mindspeed_vita.checkpoint.hf.export import export_hf
from mindspeed_vita.checkpoint.hf.load import import_hf
from mindspeed_vita.config import LanguageTraits, RopeScalingConfig, languages, register_language
from mindspeed_vita.data.tokenizer import load_tokenizer
from mindspeed_vita.hf.tile_positions import CACHE_NAME
from mindspeed_vita.inference.hf_generate import load_hf
from tests.tiny_checkpoint import TINY, random_weights, tiny_recipe

DECODERS: dict[str, dict[str, Any]] = {
    "Qwen3": {"family": "qwen3", "head_width": 12},
    "Llama": {"family": "plain_llama", "rope_scaling": RopeScalingConfig(kind="llama3", factor=8.0, original_positions=64)},
}


@pytest.mark.parametrize("base", DECODERS)
def test_the_folders_own_code_computes_what_the_package_does(
    base: str, tokenizer_folder: Path, pictures: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(languages, "_TRAITS", dict(languages._TRAITS))
    register_language("plain_llama", LanguageTraits(hf_model_type="llama", hf_base="Llama"))
    model = replace(TINY, language=replace(TINY.language, **DECODERS[base]))
    folder, weights = tmp_path / f"over_{base}", random_weights(model)
    export_hf(weights, tiny_recipe(model), folder, tokenizer=load_tokenizer(tokenizer_folder))
    found, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(found).__name__ == f"LongVITA{base}ForCausalLM" and "transformers_modules" in type(found).__module__
    assert f"{base}ForCausalLM" in [kind.__name__ for kind in type(found).__mro__]
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert type(config).__name__ == f"LongVITA{base}Config" and config.tokens_per_tile == 4
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(text="<image>\nWhat?", images=pictures["wide"], return_tensors="pt")
    own = load_hf(folder).model
    with torch.no_grad():
        expected = own(**inputs).logits
        assert expected.abs().max() > 1 and torch.equal(found.eval()(**inputs).logits, expected)
        for name in ("past_key_values", "cache"):
            _check_cache(own, inputs, expected, name)
    found.save_pretrained(tmp_path / "again")
    again = import_hf(tmp_path / "again")
    assert again.model.language == model.language and all(torch.equal(again.weights[name], weights[name]) for name in weights)
    assert type(pickle.loads(pickle.dumps(own))) is type(own), "its classes are found by name"


def _check_cache(model: Any, inputs: dict[str, torch.Tensor], expected: torch.Tensor, name: str) -> None:
    """Either name of the cache will do, over every decoder; tiles that would miss their tokens behind it are refused."""
    ids, tiles = inputs["input_ids"], {"images": inputs["images"], "image_indices": inputs["image_indices"]}
    first = model(ids[:, :5], **tiles, use_cache=True)
    rest = model(ids[:, 5:], **tiles, **{name: first[CACHE_NAME]})
    # 1e-5: the cut changes the order of summation in attention
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), expected, rtol=1e-5, atol=1e-5)
    whole = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    cached = {name: model(ids[:, :5], **tiles, use_cache=True)[CACHE_NAME]}
    assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False, **cached), whole)
    cached = {name: model(**inputs, use_cache=True)[CACHE_NAME]}
    with pytest.raises(ValueError, match=f"{ids.shape[1]} tokens are cached, .* add {ids.shape[1]} to image_indices"):
        model(ids, **tiles, **cached)
