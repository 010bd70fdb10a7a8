"""Rotary tables and rotation equal transformers' Qwen2, plain and stretched, through the exported config."""

from typing import Any

import pytest
import torch
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding, apply_rotary_pos_emb

from mindspeed_vita.checkpoint.hf.config import language_config, rope_parameters
from mindspeed_vita.config import LanguageConfig, RopeScalingConfig
from mindspeed_vita.ops.rotary import RotaryTables
from mindspeed_vita.ops.tokenwise import apply_rotary

FACTORS = tuple(1.0 + 0.5 * number for number in range(8))


def language(**scaling: Any) -> LanguageConfig:
    return LanguageConfig(
        hidden_size=64, num_heads=4, num_kv_heads=4, num_layers=1, max_positions=2**20, rope_scaling=RopeScalingConfig(**scaling)
    )


@pytest.mark.parametrize(
    "scaling",
    [
        {},
        {"kind": "linear", "factor": 4.0},
        {"kind": "ntk", "factor": 8.0},
        {"kind": "yarn", "factor": 4.0, "original_positions": 32768},
        {"kind": "yarn", "factor": 16.0, "original_positions": 4096, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.25},
        {"kind": "llama3", "factor": 8.0, "original_positions": 8192},
        {"kind": "llama3", "factor": 32.0, "original_positions": 4096, "low_freq_factor": 2.0, "high_freq_factor": 8.0},
        {"kind": "longrope", "factor": 32.0, "original_positions": 32768, "short_factor": (1.0,) * 8, "long_factor": FACTORS},
    ],
    ids=lambda scaling: scaling.get("kind", "plain"),
)
@pytest.mark.parametrize("longest", [2**20, 128])
def test_equals_transformers(scaling: dict[str, Any], longest: int) -> None:
    positions = torch.tensor([0, 1, 2, 0, 1, 5, longest - 2, longest - 1])
    config = language(**scaling)
    theirs = Qwen2Config(
        hidden_size=64, num_attention_heads=4, max_position_embeddings=2**20, rope_theta=1e6, rope_parameters=rope_parameters(config)
    )
    query = torch.randn(8, 4, 16, generator=torch.Generator().manual_seed(0))
    cos, sin = Qwen2RotaryEmbedding(theirs)(query, positions[None])
    expected, _ = apply_rotary_pos_emb(query.transpose(0, 1)[None], query.transpose(0, 1)[None], cos, sin)
    found = apply_rotary(query, *RotaryTables(config)(positions, longest))
    torch.testing.assert_close(found, expected[0].transpose(0, 1), rtol=0, atol=1e-6)
    assert language_config(_hf(config)).rope_scaling == (RopeScalingConfig() if scaling.get("kind") == "ntk" else config.rope_scaling)


def _hf(config: LanguageConfig) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "num_hidden_layers": 1,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 8,
        "vocab_size": 8,
        "max_position_embeddings": 2**20,
        "rope_parameters": rope_parameters(config),
    }


def test_ntk_is_the_published_dynamic_base_at_its_length() -> None:
    """transformers' dynamic kind at `factor` times its trained length has the same base as ours with factor 2 * factor - 1."""
    theirs = Qwen2Config(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=1000,
        rope_theta=1e6,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e6},
    )
    positions = torch.arange(1990, 2000)
    cos, _ = Qwen2RotaryEmbedding(theirs)(torch.zeros(10, 4, 16), positions[None])  # base * (4 * 2000 / 1000 - 3) ** (16 / 14)
    found, _ = RotaryTables(language(kind="ntk", factor=5.0))(positions, 2000)
    torch.testing.assert_close(found, cos[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["none", "longrope"])
def test_frequencies_go_to_a_device_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    factors = {"short_factor": (1.0,) * 8, "long_factor": FACTORS}
    tables = RotaryTables(language(kind=kind, original_positions=100, **(factors if kind == "longrope" else {})))
    first = [tables(torch.arange(4), longest)[0] for longest in (50, 200)]
    copies: list[torch.Tensor] = []
    move = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *where, **how: copies.append(x) or move(x, *where, **how))
    again = [tables(torch.arange(4), longest)[0] for longest in (50, 200)]
    assert len(copies) == 2, "more than the positions were converted or copied"
    assert all(torch.equal(*pair) for pair in zip(first, again)) and torch.equal(*first) == (kind == "none")


def test_sequences_of_both_lengths_side_by_side() -> None:
    """In a step of inference each token follows what its own sequence may grow to."""
    tables = RotaryTables(language(kind="longrope", original_positions=100, short_factor=(1.0,) * 8, long_factor=FACTORS))
    positions, longest = torch.tensor([3, 3, 90]), torch.tensor([100, 101, 4000])
    mixed = tables(positions, longest)
    for place, reach in enumerate(longest.tolist()):
        for found, wanted in zip(mixed, tables(positions, reach)):
            assert torch.equal(found[place], wanted[place])
    plain = RotaryTables(language())
    assert torch.equal(plain(positions, longest)[0], plain(positions, 4000)[0])
