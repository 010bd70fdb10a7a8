"""Export: shards and index, side files, verification, atomicity."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from mindspeed_vita.checkpoint.hf import export as hf_export
from mindspeed_vita.checkpoint.hf.export import CODE_FILES, export_hf
from mindspeed_vita.checkpoint.hf.load import import_hf
from mindspeed_vita.checkpoint.lineage import LINEAGE
from mindspeed_vita.checkpoint.mapping.rules import Gated
from mindspeed_vita.files.digest import checksum_of
from mindspeed_vita.files.safetensors_folder import INDEX, SINGLE, SafetensorsFolder
from tests.tiny_checkpoint import make_tokenizer, random_weights, tiny_recipe


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_round_trip_of_every_weight_is_exact(tmp_path: Path, tokenizer: Any) -> None:
    weights = random_weights()
    done = export_hf(weights, tiny_recipe(), tmp_path / "out", tokenizer=tokenizer)
    back = import_hf(tmp_path / "out")

    assert done.max_diff == 0.0 and done.dtype == "float32"
    assert back.weights.keys() == weights.keys()
    assert all(torch.equal(back.weights[name], weights[name]) for name in weights)
    assert back.model.language == tiny_recipe().model.language
    assert back.model.vision == tiny_recipe().model.vision
    assert back.model.projector == tiny_recipe().model.projector
    assert (back.data.max_tiles, back.data.max_frames) == (4, 4)


def test_small_shards_have_an_index_and_no_shard_exceeds_the_limit(tmp_path: Path, tokenizer: Any) -> None:
    export_hf(random_weights(), tiny_recipe(), tmp_path / "out", tokenizer=tokenizer, max_shard_bytes=60_000)

    index = json.loads((tmp_path / "out" / INDEX).read_text())
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert shards == sorted(set(index["weight_map"].values())) and len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all((tmp_path / "out" / name).stat().st_size < 70_000 for name in shards)
    assert index["metadata"]["total_size"] == sum(tensor.numel() * 4 for tensor in SafetensorsFolder(tmp_path / "out").values())


def test_bf16_export_equals_rounded_weights(tmp_path: Path, tokenizer: Any) -> None:
    weights = random_weights()
    export_hf(weights, tiny_recipe(), tmp_path / "out", tokenizer=tokenizer, dtype=torch.bfloat16)
    back = import_hf(tmp_path / "out").weights
    assert all(torch.equal(back[name], weights[name].bfloat16()) for name in weights)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_folder_holds_everything_that_4_57_and_5_need(tmp_path: Path, tokenizer: Any) -> None:
    out = tmp_path / "out"
    export_hf(random_weights(), tiny_recipe(), out, tokenizer=tokenizer)
    files = {path.name for path in out.iterdir()}
    config = json.loads((out / "config.json").read_text())

    assert files == {
        *CODE_FILES, SINGLE, "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
        "chat_template.jinja", "verification.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
        "added_tokens.json", "special_tokens_map.json",
    }  # fmt: skip
    assert files == {*hf_export.FILES, SINGLE} - {INDEX, LINEAGE}, "weights in memory have no history"
    assert config["architectures"] == ["LongVITAForCausalLM"] and config["model_type"] == "long_vita"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5e5
    assert config["visual"]["model_type"] == "intern_vit_6b"
    assert set(config["auto_map"]) == {
        "AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoProcessor",
    }  # fmt: skip
    with safe_open(out / SINGLE, framework="pt") as shard:
        assert shard.metadata() == {"format": "pt"}


def test_answers_end_where_turns_do_whatever_the_eos_token_is(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    tokenizer.eos_token = "<|endoftext|>"
    export_hf(random_weights(), tiny_recipe(), tmp_path / "out", tokenizer=tokenizer)
    config, generation = (json.loads((tmp_path / "out" / name).read_text()) for name in ("config.json", "generation_config.json"))
    end, pad = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    assert config["eos_token_id"] == end and generation["eos_token_id"] == sorted({end, pad}) and generation["pad_token_id"] == pad


def test_code_files_import_only_direct_neighbours_and_allowed_packages() -> None:
    """transformers 4.57 and 5.0 copy only files that the entry file itself imports."""
    import re

    source = Path(hf_export.mindspeed_vita.hf.__path__[0])
    imports = {name: set(re.findall(r"^from \.(\w+) import", (source / name).read_text(), re.M)) for name in CODE_FILES}
    for entry in ("configuration_long_vita.py", "modeling_long_vita.py", "processing_long_vita.py", "image_processing_long_vita.py"):
        for neighbour in imports[entry]:
            assert imports[f"{neighbour}.py"] <= imports[entry], f"{entry} must itself import what {neighbour} imports"
    for name in CODE_FILES:
        found = set(re.findall(r"^\s*(?:from|import) (\w+)", (source / name).read_text(), re.M))
        outside = found - set(__import__("sys").stdlib_module_names)
        assert outside <= {"torch", "numpy", "PIL", "transformers", "av"}, f"{name} imports {outside}"


def test_an_earlier_export_is_replaced_and_a_foreign_folder_is_not(tmp_path: Path, tokenizer: Any) -> None:
    out, weights = tmp_path / "out", random_weights()
    export_hf(weights, tiny_recipe(), out, tokenizer=tokenizer, max_shard_bytes=60_000)
    export_hf(weights, tiny_recipe(), out, tokenizer=tokenizer)
    assert [path.name for path in out.glob("*.safetensors")] == [SINGLE]

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not an earlier export; choose another"):
        export_hf(weights, tiny_recipe(), foreign, tokenizer=tokenizer)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]


def test_files_added_to_an_earlier_export_are_not_lost(tmp_path: Path, tokenizer: Any) -> None:
    out, weights = tmp_path / "out", random_weights()
    export_hf(weights, tiny_recipe(), out, tokenizer=tokenizer)
    (out / "MODELCARD.md").write_text("mine")
    (out / "eval").mkdir()
    with pytest.raises(ValueError, match="holds files that no export writes: MODELCARD.md, eval; move them"):
        export_hf(weights, tiny_recipe(), out, tokenizer=tokenizer)
    assert (out / "MODELCARD.md").read_text() == "mine"


def test_an_earlier_export_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, weights, rename = tmp_path / "out", random_weights(), os.rename
    export_hf(weights, tiny_recipe(), out, tokenizer=tokenizer)

    def refused(source: Path, target: Path) -> None:
        if ".partial-" in source.name:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(OSError, match="Input/output error.*nothing was exported"):
        export_hf(weights, tiny_recipe(), out, tokenizer=tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (out / SINGLE).is_file()


def test_a_failed_export_leaves_the_earlier_one_and_no_rest(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out, weights = tmp_path / "out", random_weights()
    export_hf(weights, tiny_recipe(), out, tokenizer=tokenizer)
    before = (out / SINGLE).read_bytes()

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf_export, "write_tokenizer", full)
    with pytest.raises(OSError, match="No space left"):
        export_hf({name: tensor + 1 for name, tensor in weights.items()}, tiny_recipe(), out, tokenizer=tokenizer)
    assert (out / SINGLE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_one_error_that_names_the_folder(tmp_path: Path, tokenizer: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        reason = rf"cannot write {tmp_path}/out: .*File too large.*model.safetensors.*raise the limit of a file.*nothing was exported"
        with pytest.raises(OSError, match=reason):
            export_hf(random_weights(), tiny_recipe(), tmp_path / "out", tokenizer=tokenizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_a_rule_whose_inverse_is_wrong_stops_the_export(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gated, "to_hf", lambda rule, tensor: tuple(reversed(tensor.chunk(2, dim=0))))
    with pytest.raises(ValueError, match="layers.0.mlp.linear_fc1.weight does not come back from .*gate_proj.*: the rule Gated is wrong"):
        export_hf(random_weights(), tiny_recipe(), tmp_path / "out", tokenizer=tokenizer)
    assert not list(tmp_path.iterdir())


def test_missing_weight_is_named(tmp_path: Path, tokenizer: Any) -> None:
    weights = random_weights()
    del weights["vision.layers.1.ls2"]
    with pytest.raises(ValueError, match="1 missing: vision.layers.1.ls2"):
        export_hf(weights, tiny_recipe(), tmp_path / "out", tokenizer=tokenizer)


def test_a_weight_of_another_shape_is_named(tmp_path: Path, tokenizer: Any) -> None:
    weights = random_weights()
    weights["projector.linear_fc1.weight"] = weights["projector.linear_fc1.weight"][:, 1:]
    with pytest.raises(ValueError, match=r"1 of another shape: projector.linear_fc1.weight \(24, 63\), expected \(24, 64\)"):
        export_hf(weights, tiny_recipe(), tmp_path / "out", tokenizer=tokenizer)
    assert not list(tmp_path.iterdir())


def test_a_written_config_that_does_not_fit_the_weights_stops_the_export(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = hf_export.hf_config
    monkeypatch.setattr(hf_export, "hf_config", lambda *args, **kwargs: {**real(*args, **kwargs), "intermediate_size": 50})
    with pytest.raises(ValueError, match=r"6 of another shape: model.layers.0.mlp.gate_proj.weight \(48, 32\), expected \(50, 32\)"):
        export_hf(random_weights(), tiny_recipe(), tmp_path / "out", tokenizer=tokenizer)
    assert not list(tmp_path.iterdir())


def test_tokenizer_larger_than_the_table_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    from dataclasses import replace

    recipe = tiny_recipe()
    small = replace(recipe, model=replace(recipe.model, language=replace(recipe.model.language, vocab_size=300)))
    with pytest.raises(ValueError, match="the tokenizer has 320 entries, the embedding table 300 rows"):
        export_hf(random_weights(), small, tmp_path / "out", tokenizer=tokenizer)


def test_the_weights_of_an_export_stay_the_same_bytes(tmp_path: Path, tokenizer: Any) -> None:
    """sha256 of the files of a fixed model, taken from version 0.1.0's writer."""
    export_hf(random_weights(), tiny_recipe(), tmp_path / "out", tokenizer=tokenizer, max_shard_bytes=60_000)
    found = {path.name: checksum_of(path, "sha256")[:16] for path in (tmp_path / "out").glob("*.safetensors*")}
    assert found == {
        "model-00001-of-00004.safetensors": "c1bc363f1b1fabed",
        "model-00002-of-00004.safetensors": "0e159f40f9991f1c",
        "model-00003-of-00004.safetensors": "40d3baf626ee64b1",
        "model-00004-of-00004.safetensors": "6af2abc33a71bf33",
        INDEX: "94b802836b154eee",
    }


def test_an_export_that_a_killed_process_left_aside_comes_back(tmp_path: Path, tokenizer: Any) -> None:
    out, weights = tmp_path / "out", random_weights()
    export_hf(weights, tiny_recipe(), out, tokenizer=tokenizer)
    os.rename(out, tmp_path / ".replaced-out")
    del weights["vision.layers.1.ls2"]
    with pytest.raises(ValueError, match="1 missing"):
        export_hf(weights, tiny_recipe(), out, tokenizer=tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (out / SINGLE).is_file()
