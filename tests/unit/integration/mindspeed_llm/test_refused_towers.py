"""Cut towers whose heads MindSpeed-LLM's checkpoints could not keep are refused at the start; the presets come back whole from flags."""

import pytest

from mindspeed_vita.config import Recipe, recipe_from_dict
from mindspeed_vita.integration.mindspeed_llm.refusals import check_pipeline, check_stores, check_tower
from tests.unit.integration.mindspeed_llm.test_arguments import round_trip


def recipe(preset: str, tp: int, mode: str) -> Recipe:
    model = {"preset": "7b", "vision": {"preset": preset}}
    return recipe_from_dict({"model": model, "parallel": {"tp": tp, "vision_parallel": mode}, "plugins": []})


@pytest.mark.parametrize("preset", ["intern_vit_300m", "siglip_400m", "clip_l"])
def test_even_heads_pass(preset: str) -> None:
    check_tower(recipe(preset, 4, "tensor"))
    assert round_trip(recipe(preset, 4, "tensor")).model == recipe(preset, 4, "tensor").model


def test_zero_heads_are_refused() -> None:
    for tp, passes in ((1, True), (2, False), (5, False)):
        if passes:
            check_tower(recipe("intern_vit_6b", tp, "tensor"))
            continue
        with pytest.raises(ValueError, match=rf"cuts 25 heads \(qk_norm=true\) over tp={tp}, .*use balanced, or the built-in engine"):
            check_tower(recipe("intern_vit_6b", tp, "tensor"))
    check_tower(recipe("intern_vit_6b", 8, "balanced"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"parallel": {"pp": 2, "layer_split": "balanced"}}, "parallel.layer_split and parallel.stage_layers are for the built-in engine"),
        ({"parallel": {"pp": 3, "stage_layers": [1, 1, 1]}}, "use --decoder-first-pipeline-num-layers"),
        ({"parallel": {"pp": 2}, "model": {"language": {"tie_embeddings": True}}}, "parallel.pp=2 with model.language.tie_embeddings"),
        ({"train": {"even_steps": 4}}, "train.even_steps=4 is for the built-in engine"),
    ],
)
def test_pipelines_of_the_built_in_engine_are_refused(content, message):
    with pytest.raises(ValueError, match=message):
        check_pipeline(recipe_from_dict(content))
    check_pipeline(recipe_from_dict({"parallel": {"pp": 3, "virtual_stages": 2}}))


def test_object_stores_are_for_the_built_in_engine():
    """MindSpeed-LLM took the address for a folder, and the store for a note."""
    for content, message in (
        ({"init_from": "s3://b/runs/a"}, "checkpoint.init_from=s3://b/runs/a is an address; only the built-in engine fetches it: copy"),
        ({"store": "s3://b/runs/a"}, "checkpoint.store=s3://b/runs/a: MindSpeed-LLM's checkpoints are not sent to a store; leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            check_stores(recipe_from_dict({"checkpoint": content}))
    check_stores(recipe_from_dict({"checkpoint": {"init_from": "/weights"}}))
