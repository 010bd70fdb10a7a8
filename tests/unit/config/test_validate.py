"""Cross-field checks happen before anything is built, and say what to change."""

from dataclasses import replace
from typing import Any

import pytest

from mindspeed_vita.config import (
    LanguageConfig,
    ModelConfig,
    ProjectorConfig,
    Recipe,
    TrainConfig,
    model_config_from_dict,
    recipe_from_dict,
    validate,
)
from mindspeed_vita.config.presets import MODELS


@pytest.mark.parametrize("preset, parallel", [("tiny", {}), ("7b", {"tp": 4}), ("14b", {"tp": 8, "cp": 2}), ("72b", {"tp": 8, "pp": 8})])
@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_presets_fit_their_layouts(preset: str, parallel: dict[str, int], stage: int) -> None:
    recipe = recipe_from_dict({"stage": stage, "model": {"preset": preset}, "parallel": parallel})
    size = recipe.parallel.tp * recipe.parallel.pp * recipe.parallel.cp
    validate(recipe, world_size=size)


@pytest.mark.parametrize(
    ("content", "world_size", "message"),
    [
        ({"parallel": {"tp": 2}}, 3, r"tp\*pp\*cp=2\*1\*1=2 does not divide the number of processes, 3;"),
        ({"parallel": {"tp": 4}}, 1, r"does not divide the number of processes, 1; use a multiple of 4"),
        ({"parallel": {"tp": 3}}, 3, r"parallel.tp=3 does not divide model.language.num_heads=4"),
        ({"parallel": {"pp": 2}}, 2, r"parallel.pp=2 does not divide model.language.num_layers=3"),
        ({"parallel": {"cp": 2}, "data": {"seq_length": 578}}, 2, r"seq_length=578 is not a multiple of 2\*cp\*tp=2\*2\*1=4; use 580"),
        ({"train": {"global_batch": 3}}, 2, r"data parallel size=2 does not divide train.global_batch=3"),
        ({"parallel": {"tp": 0}}, 1, "at least 1"),
        ({"parallel": {"vision_parallel": "tiles"}}, 1, "parallel.vision_parallel='tiles'; expected one of balanced, tensor"),
        (
            {"parallel": {"tp": 2, "vision_parallel": "tensor"}, "model": {"vision": {"ffn_hidden_size": 383}}},
            2,
            "parallel.tp=2 does not divide model.vision.ffn_hidden_size=383; parallel.vision_parallel=tensor cuts the tower",
        ),
        ({"parallel": {"pp": 2, "stage_layers": [1, 1]}}, 2, r"stage_layers=\[1, 1\] has 2 layers in all; expected .*num_layers=3"),
        ({"parallel": {"pp": 2, "stage_layers": [1, 1, 1]}}, 2, r"has 3 numbers; expected one for each of parallel.pp=2 stages"),
        ({"parallel": {"pp": 2, "stage_layers": [3, 0]}}, 2, r"parallel.stage_layers\[1\]=0; expected at least 1"),
        ({"parallel": {"pp": 2, "stage_layers": [1, 2], "layer_split": "balanced"}}, 2, "leave one of them out"),
        ({"parallel": {"virtual_stages": 3}}, 1, "parallel.virtual_stages=3 with parallel.pp=1; only a pipeline has virtual stages"),
        (
            {"parallel": {"pp": 2, "virtual_stages": 2}},
            2,
            r"parallel.pp \* parallel.virtual_stages=4 does not divide model.language.num_layers=3; use a divisor, or parallel.layer_split",
        ),
        (
            {"parallel": {"pp": 2, "virtual_stages": 2}, "model": {"language": {"num_layers": 4}}, "train": {"global_batch": 3}},
            2,
            "parallel.pp=2 does not divide train.global_batch / data parallel size=3; virtual stages take packs in groups",
        ),
        ({"parallel": {"pp": 4, "layer_split": "balanced"}}, 4, "parallel.pp=4 is more than model.language.num_layers=3"),
        ({"model": {"vision": {"patch_size": 0}}}, 1, "model.vision.patch_size=0; expected at least 1"),
        ({"model": {"language": {"num_layers": -2}}}, 1, "model.language.num_layers=-2; expected at least 1"),
        ({"model": {"language": {"hidden_size": 132}}}, 1, "width of a head=33; rotary positions need an even one"),
        ({"data": {"num_workers": -1}}, 1, "data.num_workers=-1; expected at least 0"),
        ({"train": {"beta1": 2}}, 1, "train.beta1=2; expected at least 0 and less than 1"),
        ({"train": {"lr": float("inf")}}, 1, "expected 0 <= min_lr <= lr"),
        ({"train": {"precision": "fp8"}}, 1, r"train.precision='fp8'; expected one of bf16, fp32"),
        ({"train": {"modules": ["tower"]}}, 1, r"train.modules\[0\]='tower'; expected one of vision"),
        ({"train": {"min_lr": 1.0}}, 1, "expected 0 <= min_lr <= lr"),
        ({"data": {"min_tiles": 5, "max_tiles": 2}}, 1, "expected 1 <= min_tiles <= max_tiles"),
        ({"model": {"vision": {"tower": "eva"}}}, 1, "model.vision.tower='eva'; expected one of intern_vit, siglip, clip"),
        ({"model": {"projector": {"kind": "mlp_newlin"}}}, 1, "model.projector.kind='mlp_newlin'; expected one of mlp, mlp_stride, "),
        (
            {"model": {"language": {"rope_scaling": {"kind": "llama3", "factor": 8, "low_freq_factor": 4}}}},
            1,
            r"low_freq_factor=4.0 and high_freq_factor=4.0; expected 0 < low_freq_factor < high_freq_factor",
        ),
        ({"train": {"grad_reduce": "bf16", "precision": "fp32"}}, 1, "grad_reduce=bf16 with train.precision=fp32; use precision=bf16"),
        ({"parallel": {"ring_gradients": "bf16"}, "train": {"precision": "fp32"}}, 1, "ring_gradients=bf16 with train.precision=fp32; use"),
        ({"parallel": {"cp": 4, "cp_per_node": 3}}, 4, "cp_per_node=3 and parallel.cp=4: .*use a multiple or a divisor of"),
        (
            {"parallel": {"cp": 12, "cp_per_node": 3, "ulysses": 2}, "data": {"seq_length": 576}, "train": {"global_batch": 1}},
            12,
            "cp_per_node=3 and parallel.ulysses=2: a ring rank would lie on a border; use a multiple or a divisor of parallel.ulysses",
        ),
        (
            {"parallel": {"overlap_param_gather": "always", "overlap_grad_reduce": "never"}},
            1,
            "overlap_param_gather=always with parallel.overlap_grad_reduce=never; .* leave overlap_grad_reduce out",
        ),
        ({"profile": {"steps": [3]}}, 1, r"profile.steps=\[3\]; expected the first and the last step to record, such as \[10, 12\]"),
        ({"profile": {"steps": [4, 3]}}, 1, r"profile.steps=\[4, 3\]; expected the first and the last step"),
        ({"profile": {"steps": "0, 3"}}, 1, r"profile.steps\[0\]='?0'?; expected at least 1"),
        ({"profile": {"steps": [999, 1001]}}, 1, r"profile.steps=\[999, 1001\] ends after train.steps=1000; expected steps up to 1000"),
        ({"profile": {"steps": [3, 4], "ranks": [0, 2]}}, 2, r"profile.ranks=\[0, 2\]; expected different ranks from 0 to 1, as 2"),
        ({"profile": {"steps": [3, 4], "ranks": []}}, 1, r"profile.ranks=\[\]; expected different ranks from 0 to 0"),
        ({"profile": {"ranks": [1]}}, 2, r"profile.ranks=\[1\] without profile.steps: nothing is recorded; set profile.steps"),
        ({"health": {"spike_factor": 0.5}}, 1, "health.spike_factor=0.5 makes a spike of every usual step; expected more than 1, .* or 0"),
        ({"train": {"recompute_layers": 2}}, 1, "recompute_layers=2 with train.recompute=none recomputes nothing; choose what"),
        ({"train": {"recompute": "mlp", "recompute_layers": 4}}, 1, "recompute_layers=4, but a pipeline stage has 3 layers; use at most 3"),
        ({"train": {"recompute": "mlp", "offload": "inputs"}}, 1, "offload=inputs with train.recompute=mlp: .*full_but_attention or full"),
        ({"model": {"vision": {"tile_size": 70}}}, 1, "model.projector.pixel_shuffle=2 does not divide the patch grid=5"),
    ],
)
def test_contradictions_are_refused(content: dict[str, Any], world_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(recipe_from_dict(content), world_size)


# num_layers, hidden_size, num_heads, num_kv_heads, ffn_hidden_size, vocab_size, tied, parameters of the decoder in billions as published
PUBLISHED = {
    "7b": (28, 3584, 28, 4, 18944, 152064, False, 7.61),
    "14b": (48, 5120, 40, 8, 13824, 152064, False, 14.7),
    "72b": (80, 8192, 64, 8, 29568, 152064, False, 72.7),
    "qwen2.5-0.5b": (24, 896, 14, 2, 4864, 151936, True, 0.49),
    "qwen2.5-1.5b": (28, 1536, 12, 2, 8960, 151936, True, 1.54),
    "qwen2.5-3b": (36, 2048, 16, 2, 11008, 151936, True, 3.09),
    "qwen2.5-32b": (64, 5120, 40, 8, 27648, 152064, False, 32.5),
    "qwen3-0.6b": (28, 1024, 16, 8, 3072, 151936, True, 0.6),
    "qwen3-1.7b": (28, 2048, 16, 8, 6144, 151936, True, 1.7),
    "qwen3-4b": (36, 2560, 32, 8, 9728, 151936, True, 4.0),
    "qwen3-8b": (36, 4096, 32, 8, 12288, 151936, False, 8.2),
    "qwen3-14b": (40, 5120, 40, 8, 17408, 151936, False, 14.8),
    "qwen3-32b": (64, 5120, 64, 8, 25600, 151936, False, 32.8),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_preset_has_the_published_sizes_and_number_of_parameters(preset: str) -> None:
    language = recipe_from_dict({"model": {"preset": preset}}).model.language
    layers, hidden, heads, kv_heads, ffn, vocabulary, tied, billions = PUBLISHED[preset]
    assert (language.num_layers, language.hidden_size, language.num_heads, language.num_kv_heads) == (layers, hidden, heads, kv_heads)
    assert (language.ffn_hidden_size, language.vocab_size, language.tie_embeddings) == (ffn, vocabulary, tied)
    width = 128 if preset.startswith("qwen3") else hidden // heads
    assert language.head_dim == width and language.rope_base == 1e6 and language.norm_eps == 1e-6
    attention, mlp = 2 * hidden * width * (heads + kv_heads), 3 * hidden * ffn
    total = layers * (attention + mlp) + vocabulary * hidden * (1 if tied else 2)
    assert total / 1e9 == pytest.approx(billions, rel=0.02)


def test_every_preset_is_a_whole_model() -> None:
    assert set(MODELS) == {"tiny", *PUBLISHED}
    for preset in MODELS:
        validate(recipe_from_dict({"model": {"preset": preset}, "parallel": {"tp": 2}}), 2)


def test_a_saved_architecture_without_family_is_qwen2_and_equals_todays() -> None:
    from dataclasses import asdict

    saved = asdict(recipe_from_dict({"model": {"preset": "14b"}}).model)
    for key in ("family", "head_width"):
        del saved["language"][key]
    for key in ("low_freq_factor", "high_freq_factor"):
        del saved["language"]["rope_scaling"][key]
    assert model_config_from_dict(saved) == recipe_from_dict({"model": {"preset": "14b"}}).model


def test_two_ways_to_write_a_head_width_are_one() -> None:
    assert LanguageConfig(family="qwen3", head_width=128) == LanguageConfig(family="qwen3")
    assert LanguageConfig(hidden_size=64, num_heads=4, head_width=16) == LanguageConfig(hidden_size=64, num_heads=4)
    assert LanguageConfig(family="qwen3", hidden_size=1024, num_heads=16).head_dim == 128


def test_an_unknown_family_in_a_built_config_is_one_message() -> None:
    from mindspeed_vita.config import validate_model

    model = ModelConfig(language=LanguageConfig(family="qwen9"), projector=ProjectorConfig(kind="mlp2"))
    with pytest.raises(ValueError, match="kind='mlp2'; expected one of mlp, mlp_stride.*family='qwen9'; expected one of qwen2, qwen3"):
        validate_model(model)


def test_all_problems_come_in_one_message() -> None:
    with pytest.raises(ValueError) as error:
        recipe_from_dict({"train": {"steps": 0, "precision": "fp8"}, "data": {"packing": "none"}})
    assert all(word in str(error.value) for word in ("3 problems", "train.steps=0", "fp8", "data.packing"))
    with pytest.raises(ValueError) as error:
        validate(recipe_from_dict({"train": {"min_lr": 1.0}, "data": {"min_tiles": 5, "max_tiles": 2}}))
    assert all(word in str(error.value) for word in ("2 problems", "train.min_lr=1.0", "data.min_tiles=5"))


def test_a_recipe_that_code_put_together_is_checked_like_one_that_was_loaded() -> None:
    train = replace(TrainConfig(), precision="fp8", steps=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'run': 2 problems: .*steps=0; expected at least 1.*precision='fp8'; expected one"):
        validate(replace(Recipe(), train=train))
