"""Cross-field checks happen before anything is built, and say what to change."""

from typing import Any

import pytest

from mindspeed_vita.config import recipe_from_dict, validate


@pytest.mark.parametrize("preset, parallel", [("tiny", {}), ("7b", {"tp": 4}), ("14b", {"tp": 8, "cp": 2}), ("72b", {"tp": 8, "pp": 8})])
@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_presets_fit_their_layouts(preset: str, parallel: dict[str, int], stage: int) -> None:
    recipe = recipe_from_dict({"stage": stage, "model": {"preset": preset}, "parallel": parallel})
    size = recipe.parallel.tp * recipe.parallel.pp * recipe.parallel.cp
    validate(recipe, world_size=size)


@pytest.mark.parametrize(
    ("content", "world_size", "message"),
    [
        ({"parallel": {"tp": 2}}, 3, r"tp\*pp\*cp=2\*1\*1=2 does not divide the 3 processes"),
        ({"parallel": {"tp": 4}}, 1, r"does not divide the 1 processes that were started; start a multiple of 4"),
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
        ({"parallel": {"pp": 3}, "model": {"language": {"tie_embeddings": True}}}, 3, "two stages would share a table; use pp=1"),
        ({"model": {"vision": {"patch_size": 0}}}, 1, "model.vision.patch_size=0; expected at least 1"),
        ({"model": {"language": {"num_layers": -2}}}, 1, "model.language.num_layers=-2; expected at least 1"),
        ({"model": {"language": {"hidden_size": 132}}}, 1, "width of a head=33; rotary positions need an even one"),
        ({"data": {"num_workers": -1}}, 1, "data.num_workers=-1; expected at least 0"),
        ({"train": {"beta1": 2}}, 1, "train.beta1=2.0; expected at least 0 and less than 1"),
        ({"train": {"lr": float("inf")}}, 1, "expected 0 <= min_lr <= lr"),
        ({"train": {"precision": "fp8"}}, 1, r"train.precision='fp8'; expected one of bf16, fp32"),
        ({"train": {"modules": ["tower"]}}, 1, r"train.modules=\['tower'\]; expected at least one of vision"),
        ({"train": {"min_lr": 1.0}}, 1, "expected 0 <= min_lr <= lr"),
        ({"data": {"min_tiles": 5, "max_tiles": 2}}, 1, "expected 1 <= min_tiles <= max_tiles"),
        ({"model": {"vision": {"tower": "eva"}}}, 1, "model.vision.tower='eva'; expected one of intern_vit, siglip, clip"),
        ({"model": {"vision": {"tile_size": 70}}}, 1, "model.projector.pixel_shuffle=2 does not divide the patch grid=5"),
    ],
)
def test_contradictions_are_refused(content: dict[str, Any], world_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(recipe_from_dict(content), world_size)


def test_all_problems_come_in_one_message() -> None:
    recipe = recipe_from_dict({"train": {"steps": 0, "precision": "fp8"}, "data": {"packing": "none"}})
    with pytest.raises(ValueError) as error:
        validate(recipe)
    assert all(word in str(error.value) for word in ("train.steps=0", "fp8", "data.packing"))
