"""Weight mapping: exact both ways for every family, the layouts of fused tensors, and unmatched names refused by name."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from mindspeed_vita.checkpoint.mapping.families import family_rules
from mindspeed_vita.checkpoint.mapping.rules import Gated, GroupedQKV, HeadMajorQKV, LeadingOne, Rule, convert_to_hf, convert_to_native
from mindspeed_vita.checkpoint.mapping.vision_families import VISION_FAMILIES
from mindspeed_vita.config import LanguageConfig, ModelConfig, language_names
from tests.tiny_checkpoint import TINY, random_weights

FAMILIES = ("long_vita", *language_names(), *VISION_FAMILIES)


def _part(weights: dict[str, torch.Tensor], family: str) -> dict[str, torch.Tensor]:
    prefixes = {"long_vita": ("",), **dict.fromkeys(language_names(), ("language.",))}.get(family, ("vision.",))
    return {name: tensor for name, tensor in weights.items() if name.startswith(prefixes)}


def _model(family: str) -> ModelConfig:
    tower = {"siglip_vision": "siglip", "clip_vision": "clip"}.get(family, "intern_vit")
    language = replace(TINY.language, family=family if family in language_names() else "qwen2")
    return replace(TINY, vision=replace(TINY.vision, tower=tower), language=language)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_comes_back_unchanged(family: str) -> None:
    native = _part(random_weights(_model(family)), family)
    rules = family_rules(family, _model(family))

    there = dict(convert_to_hf(native, rules))
    back = dict(convert_to_native(there, rules))

    assert back.keys() == native.keys()
    assert all(torch.equal(back[name], native[name]) for name in native)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_name_stands_in_two_rules(family: str) -> None:
    rules = family_rules(family, _model(family))
    counts = Counter(name for rule in rules for name in rule.hf) + Counter(rule.native for rule in rules)
    assert max(counts.values()) == 1


def test_released_14b_layout_has_923_tensors() -> None:
    names = [name for rule in family_rules("long_vita", ModelConfig()) for name in rule.hf]
    assert len(names) == 923
    assert "model.layers.47.self_attn.k_proj.bias" in names
    assert "model.vision_model.encoder.layers.23.ls2" in names
    assert "model.vision_projection.mlp.2.weight" in names


def test_tied_embeddings_have_no_output_layer() -> None:
    rules = family_rules("qwen2", ModelConfig(language=LanguageConfig(tie_embeddings=True)))
    assert not any("lm_head" in name or "output_layer" in rule.native for rule in rules for name in rule.hf)


def test_grouped_qkv_keeps_each_key_head_with_its_queries() -> None:
    rule = GroupedQKV(native="n", hf=("q", "k", "v"), num_heads=4, num_groups=2)
    query, key, value = torch.arange(8.0) + 100, torch.arange(4.0) + 200, torch.arange(4.0) + 300

    fused = rule.to_native([query, key, value])

    assert fused.tolist() == [100, 101, 102, 103, 200, 201, 300, 301, 104, 105, 106, 107, 202, 203, 302, 303]
    assert [part.tolist() for part in rule.to_hf(fused)] == [query.tolist(), key.tolist(), value.tolist()]


def test_vision_qkv_goes_from_head_major_to_kind_major() -> None:
    rule = HeadMajorQKV(native="n", hf=("qkv",), num_heads=2)
    # Rows (head, kind, width 1): 10 is head 1's query.
    native = torch.tensor([0.0, 1.0, 2.0, 10.0, 11.0, 12.0])

    (kind_major,) = rule.to_hf(native)

    assert kind_major.tolist() == [0, 10, 1, 11, 2, 12]
    assert rule.to_native([kind_major]).tolist() == native.tolist()


def test_split_and_fused_vision_qkv_are_the_same_rows() -> None:
    native = _part(random_weights(), "intern_vit")
    fused = dict(convert_to_hf(native, family_rules("intern_vit", TINY)))
    split = dict(convert_to_hf(native, family_rules("internvl_vision", TINY)))

    for kind in ("weight", "bias"):
        parts = [split[f"encoder.layer.1.attention.{part}_proj.{kind}"] for part in "qkv"]
        assert torch.equal(fused[f"encoder.layers.1.attn.qkv.{kind}"], torch.cat(parts))


def test_gate_comes_before_up() -> None:
    rule = Gated(native="n", hf=("gate", "up"))
    assert rule.to_native([torch.zeros(2, 1), torch.ones(2, 1)]).flatten().tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="gate .*up .* must have one shape"):
        rule.to_native([torch.zeros(2), torch.zeros(3)])


def test_a_leading_axis_must_have_size_one() -> None:
    rule = LeadingOne(native="n", hf=("position",))
    assert rule.to_hf(torch.zeros(3, 2))[0].shape == (1, 3, 2)
    with pytest.raises(ValueError, match=r"position: found shape \(2, 3\)"):
        rule.to_native([torch.zeros(2, 3)])


def test_heads_that_do_not_fit_the_rows_are_refused() -> None:
    rule = GroupedQKV(native="layer.qkv", hf=("q", "k", "v"), num_heads=3, num_groups=1)
    with pytest.raises(ValueError, match="layer.qkv: 16 rows do not divide into 5 heads"):
        rule.to_hf(torch.zeros(16, 2))
    with pytest.raises(ValueError, match="k: found 2 rows, expected 1 heads of 4"):
        rule.to_native([torch.zeros(12), torch.zeros(2), torch.zeros(4)])


def test_unmatched_names_on_either_side_are_listed() -> None:
    rules = (Rule(native="a", hf=("A",)), Rule(native="b", hf=("B",)))
    with pytest.raises(ValueError, match="native weights .* 1 missing: b; 1 unexpected: c"):
        list(convert_to_hf({"a": torch.zeros(1), "c": torch.zeros(1)}, rules))
    with pytest.raises(ValueError, match="Hugging Face weights .* 1 missing: A"):
        list(convert_to_native({"B": torch.zeros(1)}, rules))


def test_unknown_family_is_named() -> None:
    with pytest.raises(ValueError, match="'llama', expected one of long_vita"):
        family_rules("llama", TINY)


def test_weights_of_another_tower_are_refused() -> None:
    with pytest.raises(ValueError, match="siglip_vision are of the tower 'siglip', model.vision.tower is 'intern_vit'"):
        family_rules("siglip_vision", TINY)
