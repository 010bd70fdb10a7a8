"""The native language model equals transformers' Qwen2ForCausalLM with the same weights, tied and untied."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mindspeed_vita.checkpoint.mapping.families import family_rules
from mindspeed_vita.checkpoint.mapping.rules import convert_to_native
from mindspeed_vita.config import LanguageConfig
from tests.parity.native_model import native_model, text_inputs
from tests.tiny_checkpoint import TINY, random_weights

LANGUAGE = LanguageConfig(
    num_layers=3, hidden_size=64, num_heads=8, num_kv_heads=2, ffn_hidden_size=160, vocab_size=512, max_positions=4096, rope_base=1e6
)


def _reference(language: LanguageConfig) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        hidden_size=language.hidden_size, intermediate_size=language.ffn_hidden_size, num_hidden_layers=language.num_layers,
        num_attention_heads=language.num_heads, num_key_value_heads=language.num_kv_heads, vocab_size=language.vocab_size,
        max_position_embeddings=language.max_positions, rope_theta=language.rope_base, rms_norm_eps=language.norm_eps,
        tie_word_embeddings=language.tie_embeddings,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.dim() == 1 and bool(parameter.eq(1).all())
            parameter.copy_(1 + 0.2 * noise if is_norm else 0.1 * noise)
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_logits_equal_transformers_to_1e5(tied: bool) -> None:
    language = replace(LANGUAGE, tie_embeddings=tied)
    model = replace(TINY, language=language)
    reference = _reference(language)
    state = {name: tensor for name, tensor in reference.state_dict().items() if not (tied and name == "lm_head.weight")}
    weights = dict(convert_to_native(state, family_rules("qwen2", model)))
    rest = {name: tensor for name, tensor in random_weights(model).items() if not name.startswith("language.")}
    tokens = torch.randint(0, 512, (97,), generator=torch.Generator().manual_seed(2)).tolist()

    with torch.no_grad(), native_model(model, {**weights, **rest}) as (native, _):
        found = native.logits(text_inputs(tokens), torch.arange(len(tokens)))
        expected = reference(torch.tensor([tokens])).logits[0]

    # Measured 0.0 on a CPU with logits up to 3.8; another library for matrix products may sum in another order.
    assert expected.abs().max() > 1
    assert (found - expected).abs().max() <= 1e-5
