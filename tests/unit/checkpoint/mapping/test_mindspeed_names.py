"""Names and files of MindSpeed-LLM checkpoints: the released ones, a tower split over tensor parallelism, and files of many ranks."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mindspeed_vita.checkpoint.mapping.families import family_rules
from mindspeed_vita.checkpoint.mapping.mindspeed_names import from_mindspeed, native_name, to_mindspeed
from mindspeed_vita.checkpoint.megatron import rank_files
from mindspeed_vita.checkpoint.megatron.layout import join
from mindspeed_vita.config import recipe_from_dict

RELEASED = {
    "embedding.word_embeddings.weight": "language.embedding.word_embeddings.weight",
    "decoder.layers.3.input_layernorm.weight": "language.decoder.layers.3.input_layernorm.weight",
    "decoder.layers.3.mlp.linear_fc1.weight": "language.decoder.layers.3.mlp.linear_fc1.weight",
    "decoder.final_layernorm.weight": "language.decoder.final_layernorm.weight",
    "output_layer.weight": "language.output_layer.weight",
    "external_feature_model.vit.class_token": "vision.class_token",
    "external_feature_model.vit.conv1.bias": "vision.conv1.bias",
    "external_feature_model.vit.position_embeddings.weight": "vision.position_embeddings.weight",
    "external_feature_model.vit.decoder.layers.7.ls1": "vision.layers.7.ls1",
    "external_feature_model.vit.decoder.layers.7.self_attention.linear_qkv.bias": "vision.layers.7.self_attention.linear_qkv.bias",
    "external_feature_model.pre_proj_layernorm.weight": "projector.norm.weight",
    "external_feature_model.vision_projection.encoder.linear_fc2.weight": "projector.linear_fc2.weight",
}


@pytest.mark.parametrize("theirs, ours", RELEASED.items())
def test_a_released_name(theirs: str, ours: str):
    assert native_name(theirs) == ours
    assert to_mindspeed(ours) == theirs


def test_what_is_no_weight_of_ours_is_dropped():
    assert native_name("unused") is None
    assert native_name("decoder.layers.0.self_attention.linear_qkv._extra_state") is None


def test_norms_that_transformer_engine_keeps_inside_linear_layers():
    assert native_name("decoder.layers.0.self_attention.linear_qkv.layer_norm_weight") == "language.decoder.layers.0.input_layernorm.weight"
    assert native_name("decoder.layers.0.mlp.linear_fc1.layer_norm_weight") == "language.decoder.layers.0.pre_mlp_layernorm.weight"
    theirs = "external_feature_model.vit.decoder.layers.0.mlp.linear_fc1.layer_norm_bias"
    assert native_name(theirs) == "vision.layers.0.pre_mlp_layernorm.bias"


def test_every_native_name_goes_there_and_back():
    names = [rule.native for rule in family_rules("long_vita", recipe_from_dict({"model": {"preset": "tiny"}}).model)]
    there = [to_mindspeed(name) for name in names]
    assert [native_name(name) for name in there] == names and len(set(there)) == len(names)
    assert not any(name.startswith(("language.", "vision.", "projector.")) for name in there)


def model_state() -> dict[str, torch.Tensor]:
    return {
        "language.output_layer.weight": torch.arange(8.0).view(4, 2),
        "vision.layers.0.mlp.linear_fc1.weight": torch.arange(12.0).view(6, 2),
        "projector.norm.weight": torch.ones(3),
        "_extra_state": torch.zeros(1, dtype=torch.uint8),
    }


def test_a_released_state_dict_loads():
    wanted = model_state()
    found = {to_mindspeed(name): value + 1 for name, value in wanted.items() if name != "_extra_state"}
    loaded = from_mindspeed({**found, "unused": torch.zeros(2), "decoder.x._extra_state": None}, wanted)
    assert set(loaded) == set(wanted)
    assert torch.equal(loaded["projector.norm.weight"], torch.full((3,), 2.0)), "from the file"
    assert loaded["_extra_state"] is wanted["_extra_state"], "the file has none"


def test_a_missing_an_unexpected_and_a_misshapen_weight_are_named():
    wanted = model_state()
    found = {to_mindspeed(name): value for name, value in wanted.items()}
    with pytest.raises(ValueError, match=r"1 missing: language.output_layer.weight; 1 unexpected: language.decoder.y"):
        from_mindspeed({**{k: v for k, v in found.items() if k != "output_layer.weight"}, "decoder.y": torch.ones(1)}, wanted)
    with pytest.raises(ValueError, match=r"language.output_layer.weight is \(2, 2\), expected \(4, 2\): use the sizes"):
        from_mindspeed({**found, "output_layer.weight": torch.ones(2, 2)}, wanted)
    with pytest.raises(ValueError, match=r"do not fit this tower; projector.norm.weight is \(2,\) on each of 1 ranks, expected \(3,\)"):
        from_mindspeed({**found, "external_feature_model.pre_proj_layernorm.weight": torch.ones(2)}, wanted)


def test_a_split_tower_is_joined_over_the_group(monkeypatch: pytest.MonkeyPatch):
    wanted = model_state()
    name = "vision.layers.0.mlp.linear_fc1.weight"
    halves = wanted[name].chunk(2)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    monkeypatch.setattr(dist, "all_gather_object", lambda out, part, group: out.__setitem__(slice(None), halves))
    found = {to_mindspeed(key): value for key, value in wanted.items()}
    loaded = from_mindspeed({**found, to_mindspeed(name): halves[1]}, wanted, group=object())  # type: ignore[arg-type]
    assert torch.equal(loaded[name], wanted[name])


class Evil:
    """Would run code when a pickle is read."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('ran')",))


def save_ranks(folder: Path, whole: dict[str, torch.Tensor], tensor: int, stages: int) -> None:
    """Writes whole native tensors as MindSpeed-LLM would: two decoder layers a stage."""
    (folder / "latest_checkpointed_iteration.txt").write_text("7")
    for stage in range(stages):
        for rank in range(tensor):
            part: dict[str, Any] = {"decoder.layers.0.mlp.linear_fc1._extra_state": None}
            for name, value in whole.items():
                key, on_stage = name, 0
                if ".decoder.layers." in name:
                    layer = int(name.split(".")[3])
                    on_stage, key = layer // 2, name.replace(f"layers.{layer}", f"layers.{layer % 2}")
                elif "output_layer" in name:
                    on_stage = stages - 1
                if on_stage != stage:
                    continue
                if name.startswith("language.") and "norm" not in name:
                    axis = 1 if name.endswith(("linear_proj.weight", "linear_fc2.weight")) else 0
                    value = value.chunk(tensor, dim=axis)[rank]
                    if name.endswith("linear_fc1.weight"):
                        value = torch.cat([half.chunk(tensor)[rank] for half in whole[name].chunk(2)])
                part[to_mindspeed(key)] = value.clone()
            path = folder / "iter_0000007" / (f"mp_rank_{rank:02d}_{stage:03d}" if stages > 1 else f"mp_rank_{rank:02d}")
            path.mkdir(parents=True)
            torch.save({"model": part, "args": Evil(), "iteration": 7}, path / "model_optim_rng.pt")


@pytest.mark.parametrize("tensor, stages", [(1, 1), (2, 1), (2, 2)])
def test_files_of_many_ranks_become_whole_weights(tmp_path: Path, tensor: int, stages: int):
    generator = torch.Generator().manual_seed(0)
    whole = {"language.embedding.word_embeddings.weight": torch.randn(8, 4, generator=generator)}
    for layer in range(2 * stages):
        prefix = f"language.decoder.layers.{layer}."
        whole[prefix + "input_layernorm.weight"] = torch.randn(4, generator=generator)
        whole[prefix + "self_attention.linear_qkv.bias"] = torch.randn(8, generator=generator)
        whole[prefix + "self_attention.linear_proj.weight"] = torch.randn(4, 4, generator=generator)
        whole[prefix + "mlp.linear_fc1.weight"] = torch.randn(8, 4, generator=generator)
    whole["language.output_layer.weight"] = torch.randn(8, 4, generator=generator)
    whole["vision.layers.0.mlp.linear_fc1.weight"] = torch.randn(4, 4, generator=generator)
    save_ranks(tmp_path, whole, tensor, stages)
    assert rank_files.is_mindspeed(tmp_path)
    found = rank_files.read_full_weights(tmp_path)
    assert set(found) == set(whole)
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_chunks_of_an_interleaved_pipeline_lie_behind_each_other(tmp_path: Path):
    """Two stages of two chunks of two layers: the first stage has the layers 0, 1, 4 and 5."""
    whole = {f"language.decoder.layers.{layer}.input_layernorm.weight": torch.full((2,), float(layer)) for layer in range(8)}
    whole["language.output_layer.weight"] = torch.ones(4, 2)
    for stage in range(2):
        chunks: dict[str, Any] = {}
        for chunk in range(2):
            first = 4 * chunk + 2 * stage
            part = {f"decoder.layers.{place}.input_layernorm.weight": torch.full((2,), float(first + place)) for place in range(2)}
            chunks[f"model{chunk}"] = {**part, **({"output_layer.weight": torch.ones(4, 2)} if (stage, chunk) == (1, 1) else {})}
        path = tmp_path / "iter_0000007" / f"mp_rank_00_{stage:03d}"
        path.mkdir(parents=True)
        torch.save({**chunks, "rng_state": []}, path / "model_optim_rng.pt")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    found = rank_files.read_full_weights(tmp_path)
    assert set(found) == set(whole) and all(torch.equal(found[name], whole[name]) for name in whole)
    assert rank_files.saved_layout(tmp_path).virtual_stages == 2


def test_a_missing_rank_is_named(tmp_path: Path):
    save_ranks(tmp_path, {"language.embedding.word_embeddings.weight": torch.ones(4, 2)}, tensor=2, stages=1)
    (tmp_path / "iter_0000007/mp_rank_00").rename(tmp_path / "away")
    with pytest.raises(ValueError, match="tensor-parallel rank 0 of pipeline stage 0 has no file"):
        rank_files.read_full_weights(tmp_path)
    with pytest.raises(ValueError, match="holds no mp_rank_"):
        rank_files.read_full_weights(tmp_path / "iter_0000007/mp_rank_01")


def test_ranks_of_different_checkpoints_are_refused():
    with pytest.raises(ValueError, match="should be the same on every tensor-parallel rank"):
        join("language.decoder.final_layernorm.weight", [torch.ones(2), torch.zeros(2)])


def test_a_pickle_runs_nothing(tmp_path: Path):
    with pytest.raises(SystemExit, match="ran"):
        pickle.loads(pickle.dumps(Evil()))
    torch.save({"model": {"output_layer.weight": torch.ones(1)}, "args": Evil()}, tmp_path / "file.pt")
    assert list(map(list, rank_files.read_rank(tmp_path / "file.pt"))) == [["output_layer.weight"]]


def test_a_damaged_tracker_is_named(tmp_path: Path) -> None:
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("12\x00")
    with pytest.raises(ValueError, match="latest_checkpointed_iteration.txt says '12.x00'; expected a number of steps, or release"):
        rank_files.saved_layout(tmp_path)
