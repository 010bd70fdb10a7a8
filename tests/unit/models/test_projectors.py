"""Each projector against its definition written out patch by patch, and against the exported modelling code with converted weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mindspeed_vita.checkpoint.hf.config import hf_config, model_config
from mindspeed_vita.checkpoint.mapping.families import family_rules
from mindspeed_vita.checkpoint.mapping.rules import convert_to_hf, convert_to_native
from mindspeed_vita.config import ModelConfig, ProjectorConfig, VisionConfig, recipe_from_dict, validate
from tests.tiny_checkpoint import TINY, random_weights

KINDS = [("mlp", 4, 2), ("mlp", 6, 3), ("mlp", 3, 1)] + [
    ("mlp_stride", 5, 2), ("mlp_stride", 7, 3), ("mlp_stride", 4, 2), ("mlp_newline", 4, 2),
]


def _model(kind: str, grid: int, side: int) -> ModelConfig:
    vision = replace(TINY.vision, tile_size=7 * grid)
    return replace(TINY, vision=vision, projector=ProjectorConfig(kind=kind, pixel_shuffle=side, hidden_size=24))


def _built(model: ModelConfig) -> torch.nn.Module:
    from megatron.core.transformer.transformer_config import TransformerConfig

    from mindspeed_vita.models.projector import projectors

    settings = TransformerConfig(num_layers=1, hidden_size=64, num_attention_heads=1)
    vision = model.vision
    projector = projectors.build(
        model.projector.kind, model.projector, grid=vision.grid, input_size=vision.hidden_size,
        output_size=model.language.hidden_size, transformer_config=settings,
    )  # fmt: skip
    prefix = "projector."
    weights = {name[len(prefix) :]: tensor for name, tensor in random_weights(model).items() if name.startswith(prefix)}
    projector.load_state_dict(weights, strict=True)
    return projector


def _by_definition(projector: torch.nn.Module, features_BPC: torch.Tensor, kind: str, grid: int, side: int) -> torch.Tensor:
    """Token by token, from the weights."""
    rows, width = -(-grid // side), features_BPC.shape[-1]
    tiles = []
    for tile in features_BPC.view(-1, grid, grid, width):
        tokens = []
        for row in range(rows):
            for column in range(rows):
                places = [(row * side + y, column * side + x) for y in range(side) for x in range(side)]
                parts = [tile[y, x] if y < grid and x < grid else torch.zeros(width) for y, x in places]
                merged = F.layer_norm(torch.cat(parts), (width * side**2,), projector.norm.weight, projector.norm.bias, 1e-5)
                tokens.append(projector.linear_fc2.weight @ F.gelu(projector.linear_fc1.weight @ merged))
            if kind == "mlp_newline":
                tokens.append(projector.newline[0])
        tiles.append(torch.stack(tokens))
    return torch.stack(tiles)


@pytest.mark.parametrize(("kind", "grid", "side"), KINDS)
def test_projector_equals_its_definition(kind: str, grid: int, side: int) -> None:
    model = _model(kind, grid, side)
    projector, features_BPC = _built(model), torch.randn(3, grid * grid, model.vision.hidden_size)
    found = projector(features_BPC)
    assert found.shape == (3, model.tokens_per_tile, model.language.hidden_size)
    expected = _by_definition(projector, features_BPC, kind, grid, side)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * float(expected.detach().abs().max()))


@pytest.mark.parametrize(("kind", "grid", "side"), KINDS)
def test_the_exported_code_gives_the_same_rows(kind: str, grid: int, side: int) -> None:
    from mindspeed_vita.hf.configuration_long_vita import LongVITAConfig
    from mindspeed_vita.hf.modeling_long_vita import LongVitaProjector

    model = _model(kind, grid, side)
    written = hf_config(model, token_ids=dict.fromkeys(("bos", "eos", "pad", "image", "video", "patch"), 0), dtype="float32")
    config = LongVITAConfig(**written)
    assert config.tokens_per_tile == model.tokens_per_tile and model_config(written).projector == model.projector
    rules, native = family_rules("long_vita", model), random_weights(model)
    stored, prefix = dict(convert_to_hf(native, rules)), "model.vision_projection."
    back = dict(convert_to_native(stored, rules))
    assert all(torch.equal(back[name], tensor) for name, tensor in native.items()) and back.keys() == native.keys()
    exported = LongVitaProjector(config)
    exported.load_state_dict({name[len(prefix) :]: tensor for name, tensor in stored.items() if name.startswith(prefix)}, strict=True)
    features_BPC = torch.randn(2, grid * grid, model.vision.hidden_size)
    torch.testing.assert_close(exported(features_BPC), _built(model)(features_BPC), rtol=0, atol=1e-6)


def test_a_new_projector_starts_with_every_weight() -> None:
    from mindspeed_vita.checkpoint.hf.load import initial_projector

    for kind, grid, side in KINDS:
        model = _model(kind, grid, side)
        expected = {name: tensor.shape for name, tensor in random_weights(model).items() if name.startswith("projector.")}
        assert {name: tensor.shape for name, tensor in initial_projector(model, 0, torch.float32).items()} == expected


def test_gradients_reach_every_parameter() -> None:
    for kind, grid, side in KINDS:
        projector = _built(_model(kind, grid, side))
        features = torch.randn(2, grid * grid, TINY.vision.hidden_size, requires_grad=True)
        projector(features).square().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in projector.parameters())
        assert features.grad is not None and bool((features.grad.abs().sum(-1) > 0).all()), "every patch counts"


def test_training_and_the_exported_code_have_one_table() -> None:
    from mindspeed_vita.config import projector_names, projector_traits
    from mindspeed_vita.hf.configuration_long_vita import PROJECTORS
    from mindspeed_vita.models.projector import projectors

    parts = {kind: tuple(part for part in ("padding", "newline") if getattr(projector_traits(kind), part)) for kind in projector_names()}
    assert parts == PROJECTORS and set(projectors.names()) == set(parts)


def test_a_projector_of_a_plugin_trains_but_is_not_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    from mindspeed_vita.config import ProjectorTraits, projectors
    from mindspeed_vita.models.projector import register_projector
    from mindspeed_vita.models.projector.mlp import MLPProjector

    class OneToken(ProjectorTraits):
        def tokens(self, grid: int, shuffle: int) -> int:
            return 1

    class Mean(MLPProjector):
        def merge(self, features_BPC: torch.Tensor) -> torch.Tensor:
            return super().merge(features_BPC).mean(1, keepdim=True)

    monkeypatch.setattr(projectors, "_TRAITS", dict(projectors._TRAITS))
    with pytest.raises(ValueError, match="model.projector.kind 'mlp' is registered already"):
        register_projector("mlp", OneToken(), Mean)
    register_projector("mean", OneToken(), Mean)
    recipe = recipe_from_dict({"model": {"preset": "tiny", "projector": {"kind": "mean"}}})
    validate(recipe)
    assert recipe.model.tokens_per_tile == 1
    with pytest.raises(ValueError, match="model.projector.kind='mean' has no Hugging Face layout; the exported code knows mlp, "):
        hf_config(recipe.model, token_ids=dict.fromkeys(("bos", "eos", "pad", "image", "video", "patch"), 0), dtype="float32")


def test_a_grid_that_the_shuffle_does_not_divide_is_refused_when_the_recipe_is_read() -> None:
    grid_of_27 = {"preset": "7b", "vision": {"tile_size": 378}}
    with pytest.raises(ValueError, match="pixel_shuffle=2 does not divide the patch grid=27; use a divisor, or .*kind=mlp_stride"):
        validate(recipe_from_dict({"model": grid_of_27}))
    recipe = recipe_from_dict({"model": {**grid_of_27, "projector": {"kind": "mlp_stride"}}})
    validate(recipe)
    assert recipe.model.tokens_per_tile == 14 * 14
    assert replace(ModelConfig(), vision=VisionConfig(), projector=ProjectorConfig(kind="mlp_newline")).tokens_per_tile == 16 * 17
