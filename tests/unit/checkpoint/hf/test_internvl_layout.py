"""InternVL's layouts: exports come back whole, InternVL's own folders come in as far as they fit, and the rest is refused.

tests/hf_matrix/test_internvl.py loads the exports with transformers.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mindspeed_vita.checkpoint.hf.export import export_hf
from mindspeed_vita.checkpoint.hf.internvl_files import INTERNVL_LAYOUT
from mindspeed_vita.checkpoint.hf.load import import_hf
from mindspeed_vita.checkpoint.hf.weights import family_shapes, native_tensors
from mindspeed_vita.checkpoint.lineage import LINEAGE
from mindspeed_vita.checkpoint.mapping.families import family_rules
from mindspeed_vita.checkpoint.mapping.rules import convert_to_native
from mindspeed_vita.config import ModelConfig, RopeScalingConfig
from mindspeed_vita.files.safetensors_folder import SINGLE
from tests.tiny_checkpoint import TINY, make_tokenizer, random_weights, tiny_recipe, write_internvl_chat

QWEN3 = replace(TINY, language=replace(TINY.language, family="qwen3", head_width=12, tie_embeddings=True))
LLAMA3 = RopeScalingConfig(kind="llama3", factor=8.0, original_positions=64)
STRETCHED = replace(TINY, language=replace(TINY.language, rope_scaling=LLAMA3))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """TINY in transformers' InternVL layout."""
    folder = tmp_path_factory.mktemp("internvl") / "out"
    export_hf(random_weights(), tiny_recipe(), folder, tokenizer=tokenizer, layout=INTERNVL_LAYOUT)
    return folder


def _edited(source: Path, folder: Path, *, config: dict[str, Any] | None = None, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    folder.mkdir()
    whole = {**json.loads((source / "config.json").read_text()), **(config or {})}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in whole.items() if value is not None}))
    save_file({**load_file(source / SINGLE), **(tensors or {})}, folder / SINGLE)
    return folder


def _chat(folder: Path, bias: float = 0.0) -> Path:
    """TINY as InternVL's own repositories lay it out; its projector has the width that they have."""
    model = replace(TINY, projector=replace(TINY.projector, hidden_size=TINY.language.hidden_size))
    write_internvl_chat(folder, random_weights(model), model)
    if bias:
        held = load_file(folder / SINGLE)
        save_file({**held, "mlp1.1.bias": held["mlp1.1.bias"] + bias}, folder / SINGLE)
    return folder


@pytest.mark.parametrize("model", [TINY, QWEN3, STRETCHED], ids=["qwen2", "qwen3", "llama3-rope"])
def test_an_export_comes_back_with_every_weight_and_setting(tmp_path: Path, tokenizer: Any, model: ModelConfig) -> None:
    weights = random_weights(model)
    done = export_hf(weights, tiny_recipe(model), tmp_path / "out", tokenizer=tokenizer, layout=INTERNVL_LAYOUT)
    back = import_hf(tmp_path / "out")
    assert (done.layout, done.max_diff) == ("internvl", 0.0)
    assert back.model == model and (back.data.min_tiles, back.data.max_tiles) == (1, 4)
    assert back.weights.keys() == weights.keys() and all(torch.equal(back.weights[name], weights[name]) for name in weights)


def test_the_folder_holds_no_code_and_the_names_of_published_folders(exported: Path) -> None:
    files = {path.name for path in exported.iterdir()}
    assert files == {*INTERNVL_LAYOUT.files, SINGLE} - {"model.safetensors.index.json", LINEAGE}
    assert not any(name.endswith(".py") for name in files)
    assert "auto_map" not in (exported / "config.json").read_text() + (exported / "preprocessor_config.json").read_text()
    with safe_open(exported / SINGLE, framework="pt") as shard:
        names = set(shard.keys())
        assert shard.metadata() == {"format": "pt"} and shard.get_slice("multi_modal_projector.linear_1.weight").get_shape() == [32, 64]
    assert {name.split(".")[0] for name in names} == {"language_model", "multi_modal_projector", "vision_tower"}
    assert {"language_model.lm_head.weight", "language_model.model.embed_tokens.weight", "vision_tower.embeddings.cls_token"} < names


def test_the_released_sizes_get_the_known_names_and_shapes() -> None:
    model = ModelConfig()
    shapes = family_shapes("internvl", model)
    assert len(shapes) == 923 + 2 + 4 * 24  # two biases of the projector; queries, keys and values of the tower apart
    assert shapes["multi_modal_projector.linear_1.weight"] == (5120, 4096) and shapes["multi_modal_projector.linear_1.bias"] == (5120,)
    assert shapes["multi_modal_projector.linear_2.weight"] == (5120, 5120)
    rules = family_rules("internvl", model)
    back = dict(convert_to_native({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, rules))
    assert {name: tensor.shape for name, tensor in back.items()} == {name: tensor.shape for name, tensor in native_tensors(model).items()}


def test_what_internvl_cannot_compute_is_refused_with_every_difference(tmp_path: Path, tokenizer: Any) -> None:
    model = replace(
        TINY,
        vision=replace(TINY.vision, tower="siglip", qk_norm=True, norm_eps=1e-5),
        projector=replace(TINY.projector, kind="mlp_newline", hidden_size=40, norm_eps=1e-6),
    )
    with pytest.raises(ValueError, match="this model has no InternVL layout") as refused:
        export_hf({}, tiny_recipe(model, tiling="anyres"), tmp_path / "out", tokenizer=tokenizer, layout=INTERNVL_LAYOUT)
    for part in (
        "model.vision.tower is 'siglip', InternVL has InternViT",
        "model.vision.norm_eps is 1e-05 with qk_norm, InternVL norms queries and keys with 1e-06",
        "model.projector.kind is 'mlp_newline', InternVL has 'mlp' only",
        "model.projector.norm_eps is 1e-06, InternVL has 1e-05",
        "model.projector.hidden_size is 40, InternVL has that of the decoder, 32, at most",
        "data.tiling is 'anyres', InternVL cuts pictures as 'dynamic' does",
        "Use --to hf, which exports it with its own code",
    ):
        assert part in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_shuffle_that_its_ratio_cannot_say_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    model = replace(TINY, vision=replace(TINY.vision, tile_size=42), projector=replace(TINY.projector, pixel_shuffle=3))
    with pytest.raises(ValueError, match="pixel_shuffle is 3, InternVL's downsample_ratio needs a power of two"):
        export_hf({}, tiny_recipe(model), tmp_path / "out", tokenizer=tokenizer, layout=INTERNVL_LAYOUT)


def test_names_of_the_classes_parameters_are_read_too(tmp_path: Path, exported: Path) -> None:
    renamed = {
        f"model.{name}".replace("model.language_model.lm_head", "lm_head").replace("language_model.model.", "language_model."): tensor
        for name, tensor in load_file(exported / SINGLE).items()
    }
    folder = tmp_path / "renamed"
    folder.mkdir()
    (folder / "config.json").write_bytes((exported / "config.json").read_bytes())
    save_file(renamed, folder / SINGLE)
    weights, back = random_weights(), import_hf(folder).weights
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_without_our_key_the_padding_is_part_of_the_projector(tmp_path: Path, exported: Path) -> None:
    back = import_hf(_edited(exported, tmp_path / "other", config={"long_vita_projector_hidden_size": None}))
    weights, padded = random_weights(), back.weights["projector.linear_fc1.weight"]
    assert back.model.projector.hidden_size == 32 and padded.shape == (32, 64)
    assert torch.equal(padded[:24], weights["projector.linear_fc1.weight"]) and not padded[24:].any()


@pytest.mark.parametrize(
    ("name", "place", "message"),
    [
        ("linear_1.bias", 3, "multi_modal_projector.linear_1.bias has values up to 0.5; our projector has no biases"),
        ("linear_1.weight", (30, 2), r"multi_modal_projector.linear_1.weight beyond 24 x 64 has values up to 0.5"),
        ("linear_2.weight", (2, 30), r"multi_modal_projector.linear_2.weight beyond 32 x 24 has values up to 0.5"),
    ],
)
def test_a_projector_that_computes_something_else_is_refused(
    tmp_path: Path, exported: Path, name: str, place: Any, message: str
) -> None:
    tensor = load_file(exported / SINGLE)[f"multi_modal_projector.{name}"]
    tensor[place] = -0.5
    folder = _edited(exported, tmp_path / "other", tensors={f"multi_modal_projector.{name}": tensor})
    with pytest.raises(ValueError, match=f"{folder}: {message}.*--new-projector takes the decoder and the tower"):
        import_hf(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_feature_layer": -2}, "vision_feature_layer -2; expected -1"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act 'relu'; expected 'gelu'"),
        ({"downsample_ratio": 0.3}, "downsample_ratio 0.3; expected one over a whole number"),
    ],
)
def test_settings_that_we_do_not_have_are_refused(tmp_path: Path, exported: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        import_hf(_edited(exported, tmp_path / "other", config=changes))


def test_internvls_own_folder_comes_in_where_its_biases_are_zero(tmp_path: Path) -> None:
    back = import_hf(_chat(tmp_path / "chat"))
    model = replace(TINY, projector=replace(TINY.projector, hidden_size=32))
    weights = random_weights(model)
    assert back.model.language == replace(TINY.language, max_positions=4096) and back.model.projector.hidden_size == 32
    assert back.data.max_tiles == 6
    assert back.weights.keys() == weights.keys() and all(torch.equal(back.weights[name], weights[name]) for name in weights)


def test_of_internvls_own_folder_with_biases_the_rest_comes_in(tmp_path: Path) -> None:
    folder = _chat(tmp_path / "chat", bias=0.25)
    with pytest.raises(ValueError, match=r"mlp1.1.bias has values up to 0.25; .*--new-projector"):
        import_hf(folder)
    back = import_hf(folder, new_projector=True)
    fresh = {"norm.weight", "norm.bias", "linear_fc1.weight", "linear_fc2.weight"}
    assert set(back.initialised) == {f"projector.{name}" for name in fresh}
    assert back.model.projector.hidden_size == 16 and back.weights["projector.linear_fc1.weight"].shape == (16, 64)
    weights = random_weights(replace(TINY, projector=replace(TINY.projector, hidden_size=32)))
    assert all(torch.equal(back.weights[name], weights[name]) for name in weights if not name.startswith("projector."))


def test_a_new_projector_is_for_internvl_only(tmp_path: Path, tokenizer: Any) -> None:
    export_hf(random_weights(), tiny_recipe(), tmp_path / "ours", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="ours is no InternVL; leave --new-projector out"):
        import_hf(tmp_path / "ours", new_projector=True)
