"""Megatron's torch_dist checkpoints: read block by block into native weights, and refused in one line where they are damaged."""

from __future__ import annotations

import io
import pickle
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from mindspeed_vita.checkpoint.mapping.mindspeed_names import to_megatron, to_mindspeed
from mindspeed_vita.checkpoint.megatron import dist_files, pickles
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.checkpoint.native.checkpoint import load_full_weights
from mindspeed_vita.cli.main import main
from mindspeed_vita.config import recipe_to_dict
from mindspeed_vita.engine.session import init_distributed, shutdown
from mindspeed_vita.files.tensors import Tensors
from mindspeed_vita.platform import get_platform
from tests.tiny_checkpoint import TINY, random_weights, tiny_recipe

RECIPE = tiny_recipe()
LAYERS = TINY.language.num_layers
RAN: list[str] = []


class Evil:
    """Would run code when a pickle is read."""

    def __reduce__(self) -> Any:
        return (RAN.append, ("ran",))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What megatron.core's dist_checkpointing writes for a model of ours: decoder layers stacked, fc1 in two blocks."""
    from megatron.core import dist_checkpointing

    from mindspeed_vita.parallel.build import build_model

    folder = tmp_path_factory.mktemp("torch_dist")
    model = build_model(RECIPE, init_distributed(RECIPE, get_platform("cpu")))
    load_full_weights(random_weights(), model, source="here")
    (folder / "run/iter_0000005").mkdir(parents=True)
    content = {"model": model.sharded_state_dict(metadata=None), "iteration": 5, "checkpoint_version": 3.0}
    dist_checkpointing.save(content, str(folder / "run/iter_0000005"))
    shutdown()
    (folder / "run/latest_checkpointed_iteration.txt").write_text("5")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_to_dict(RECIPE)))
    return folder


def assert_same(found: Mapping[str, torch.Tensor]) -> None:
    expected = random_weights()
    assert set(found) == set(expected)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_a_run_becomes_native(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ["convert", "--from", str(saved / "run"), "--to", "native", "--output", str(tmp_path / "out")]
    assert main(source) == 2
    assert "does not say its sizes; add --recipe" in capsys.readouterr().err
    recipe = ["--recipe", str(saved / "recipe.yaml")]
    assert main([*source, *recipe]) == 0
    assert_same(native.read_full_weights(tmp_path / "out")[0])
    assert main(["verify", str(tmp_path / "out"), str(saved / "run/iter_0000005"), *recipe, "--report", str(tmp_path / "report.json")]) == 0
    assert main([*source[:-1], str(tmp_path / "again"), "--optimizer"]) == 2


@pytest.mark.parametrize("rename", [to_mindspeed, to_megatron])
@pytest.mark.parametrize("stacked", [False, True])
def test_names_of_other_programs_and_several_writers(tmp_path: Path, rename: Any, stacked: bool) -> None:
    weights = {rename(name): tensor for name, tensor in random_weights().items()}
    if stacked:
        layers = [name for name in weights if name.startswith("decoder.layers.0.")]
        for first in layers:
            parts = [weights.pop(first.replace("layers.0.", f"layers.{layer}.")) for layer in range(LAYERS)]
            weights[first.replace("layers.0.", "layers.")] = torch.stack(parts)
    other = {"optimizer.state.exp_avg.output_layer.weight": torch.ones(2), "rng_state": torch.ones(3), "iteration": 5}
    dcp.save({**weights, **other}, checkpoint_id=tmp_path / "run", no_dist=True)
    found, files = dist_files.read_full_weights(tmp_path / "run", LAYERS)
    assert_same(found)
    assert [file.name for file in files] == [".metadata", "__0_0.distcp"]


def test_one_block_is_read_for_one_layer(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    whole = pickles.read_tensor

    def counted(path: Path, start: int, length: int) -> Any:
        tensor = whole(path, start, length)
        read.append(tensor.numel())
        return tensor

    monkeypatch.setattr(dist_files, "read_tensor", counted)
    found, _ = dist_files.read_full_weights(saved / "run", LAYERS)
    assert read == [], "headers only"
    qkv, fc1 = (found[f"language.decoder.layers.1.{name}.weight"] for name in ("self_attention.linear_qkv", "mlp.linear_fc1"))
    assert read == [qkv.numel(), fc1.numel() // 2, fc1.numel() // 2]


def change(saved: Path, folder: Path, how: Any) -> Path:
    """A copy whose metadata was changed."""
    shutil.copytree(saved / "run/iter_0000005", folder)
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    how(metadata, folder)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


KEY = "vision.conv1.weight"


def storage_of(metadata: Any) -> Any:
    return next(info for index, info in metadata.storage_data.items() if index.fqn == KEY)


def cut_off(metadata: Any, folder: Path) -> None:
    path = folder / storage_of(metadata).relative_path
    path.write_bytes(path.read_bytes()[:-2000])


def lost_file(metadata: Any, folder: Path) -> None:
    (folder / storage_of(metadata).relative_path).unlink()


def other_folder(metadata: Any, folder: Path) -> None:
    shutil.copy(folder / storage_of(metadata).relative_path, folder.parent / "__9_9.distcp")
    storage_of(metadata).relative_path = "../__9_9.distcp"


def lost_block(metadata: Any, folder: Path) -> None:
    metadata.state_dict_metadata["language.decoder.layers.mlp.linear_fc1.weight"].chunks.pop()


def twice(metadata: Any, folder: Path) -> None:
    chunks = metadata.state_dict_metadata["language.decoder.layers.mlp.linear_fc1.weight"].chunks
    chunks[1] = chunks[0]


def outside(metadata: Any, folder: Path) -> None:
    metadata.state_dict_metadata[KEY].size = torch.Size([8, 3, 7, 7])


def compressed(metadata: Any, folder: Path) -> None:
    storage_of(metadata).transform_descriptors = ["zstd"]


def other_values(metadata: Any, folder: Path) -> None:
    other = next(info for index, info in metadata.storage_data.items() if index.fqn == "vision.conv1.bias")
    storage_of(metadata).__dict__.update(other.__dict__)


def no_weights(metadata: Any, folder: Path) -> None:
    for key in list(metadata.state_dict_metadata):
        if key.startswith("vision."):
            metadata.state_dict_metadata[key] = BytesStorageMetadata()


@pytest.mark.parametrize(
    ("how", "found"),
    [
        (cut_off, "and is not there; copy the checkpoint whole"),
        (lost_file, "and is not there; copy the checkpoint whole"),
        (other_folder, "should lie in '../__9_9.distcp'"),
        (lost_block, "elements, or overlap"),
        (twice, "elements, or overlap"),
        (outside, "lies outside (8, 3, 7, 7)"),
        (compressed, "is compressed or encrypted"),
        (other_values, "holds (16,) torch.float32 for vision.conv1.weight, the metadata says (16, 3, 7, 7)"),
        (no_weights, "missing: vision."),
    ],
)
def test_what_does_not_fit_is_refused(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: Any, found: str) -> None:
    folder = change(saved, tmp_path / "run", how)
    arguments = ["--from", str(folder), "--to", "native", "--output", str(tmp_path / "out"), "--recipe", str(saved / "recipe.yaml")]
    assert main(["convert", *arguments]) == 2
    line = capsys.readouterr().err
    assert found in line and line.count("\n") == 1, line
    assert not list((tmp_path / "out").glob("step_*"))


def test_another_number_of_layers_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"has the shape \(2, .*expected 3 layers first; use the recipe of the run"):
        dist_files.read_full_weights(saved / "run", 3)


def test_metadata_runs_nothing(saved: Path, tmp_path: Path) -> None:
    folder = change(saved, tmp_path / "run", lambda metadata, folder: setattr(metadata, "planner_data", Evil()))
    assert_same(dist_files.read_full_weights(folder, LAYERS)[0])
    (folder / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="is not a whole metadata file of torch.distributed.checkpoint: it holds a Inert"):
        dist_files.read_full_weights(folder, LAYERS)
    stream = io.BytesIO()
    torch.save(Evil(), stream)
    (tmp_path / "tensor").write_bytes(stream.getvalue())
    assert isinstance(pickles.read_tensor(tmp_path / "tensor", 0, len(stream.getvalue())), pickles.Inert)
    assert RAN == []


def test_changed_files_are_read_or_refused_in_one_way(saved: Path, tmp_path: Path) -> None:
    """Four hundred checkpoints with bytes of the metadata or of the tensors' file changed, cut or put in at random."""
    chance, refused = random.Random(3), 0
    shutil.copytree(saved / "run/iter_0000005", tmp_path / "run")
    for file in (".metadata", "__0_0.distcp"):
        path = tmp_path / "run" / file
        whole = path.read_bytes()
        for _ in range(200):
            content = bytearray(whole)
            for _ in range(chance.randint(1, 4)):
                at = chance.randrange(len(content))
                content[at : at + chance.randint(0, 3)] = bytes(chance.randrange(256) for _ in range(chance.randint(0, 3)))
            path.write_bytes(content)
            refused += _reads(tmp_path / "run") is not None
        path.write_bytes(whole)
    assert refused > 100 and RAN == []


def _reads(folder: Path) -> Optional[str]:
    try:
        found: Tensors = dist_files.read_full_weights(folder, LAYERS)[0]
        for name in list(found)[::7]:
            found[name]
    except ValueError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


