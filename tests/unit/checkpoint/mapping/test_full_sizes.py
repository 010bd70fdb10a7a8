"""Names, shapes and layouts of the full sizes, both ways, on tensors without data."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mindspeed_vita.checkpoint.hf.weights import family_shapes, native_tensors
from mindspeed_vita.checkpoint.mapping.families import family_rules
from mindspeed_vita.checkpoint.mapping.mindspeed_names import native_name
from mindspeed_vita.checkpoint.mapping.streaming import hf_groups, native_from_hf
from mindspeed_vita.checkpoint.megatron.layout import LAYER
from mindspeed_vita.checkpoint.megatron.write import plan_ranks
from mindspeed_vita.config import Recipe, recipe_from_dict
from mindspeed_vita.files.safetensors_folder import plan_shards
from mindspeed_vita.files.tensors import Made, Spec


def full(preset: str) -> tuple[Recipe, Made]:
    recipe = recipe_from_dict({"model": {"preset": preset}})
    specs = {name: Spec(torch.bfloat16, tuple(tensor.shape)) for name, tensor in native_tensors(recipe.model).items()}
    return recipe, Made(specs, lambda name: pytest.fail("data was read"))


@pytest.mark.parametrize(("preset", "layers"), [("7b", 28), ("14b", 48), ("qwen2.5-32b", 64), ("72b", 80)])
def test_a_full_size_goes_to_every_format_and_back_by_names_and_shapes(preset: str, layers: int) -> None:
    recipe, native = full(preset)
    rules = family_rules("long_vita", recipe.model)
    groups = hf_groups(native, rules)
    specs = {name: spec for group in groups for name, spec in group.specs.items()}
    assert {name: spec.shape for name, spec in specs.items()} == family_shapes("long_vita", recipe.model)
    assert len(specs) == layers * 12 + 3 + 24 * 14 + 4 + 4, "decoder layers, its ends, tower layers, its ends, projector"
    back = native_from_hf(Made(specs, native._make), rules)
    assert back.specs() == native.specs()
    files = plan_shards(specs, max_shard_bytes=5 * 10**9)
    assert all(file.nbytes < 5.1e9 for file in files) and sum(len(file.tensors) for file in files) == len(specs)
    for tp, pp in ((1, 1), (4, 2), (2, 4)):
        told = replace(recipe, parallel=replace(recipe.parallel, tp=tp, pp=pp))
        for fused in (False, True):
            ranks = plan_ranks(native, told, fused_norms=fused, more={})
            assert len(ranks) == tp * pp
            named = [(index // tp, native_name(name)) for index, plan in enumerate(ranks) if index % tp == 0 for name in plan.specs]
            assert len(named) == len(set(named))
            assert {whole(str(name), stage * layers // pp) for stage, name in named} == set(native.specs())
            cut = sum(plan.nbytes for plan in ranks)
            assert sum(spec.nbytes for spec in native.specs().values()) <= cut


def whole(name: str, first_layer: int) -> str:
    match = LAYER.fullmatch(name)
    return f"{match[1]}{int(match[2]) + first_layer}{match[3]}" if match else name


def test_the_released_model_has_923_tensors() -> None:
    recipe, native = full("14b")
    assert sum(len(group.specs) for group in hf_groups(native, family_rules("long_vita", recipe.model))) == 923
