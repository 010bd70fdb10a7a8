"""safetensors files: what we write, others read; what is broken is refused with the reason; reading takes no memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mindspeed_vita.files.digest import checksum_of
from mindspeed_vita.files.safetensors_file import DTYPES, SafetensorsFile, write_tensors
from mindspeed_vita.files.safetensors_folder import INDEX, SafetensorsFolder

ALL = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES}


def test_every_type_goes_there_and_back(tmp_path: Path) -> None:
    tensors = {**ALL, "scalar": torch.tensor(3.0), "empty": torch.zeros(0, 4)}
    digest = write_tensors(tmp_path / "file", list(tensors.items()), {"format": "pt"})
    assert digest == checksum_of(tmp_path / "file")
    file = SafetensorsFile(tmp_path / "file")
    assert file.metadata == {"format": "pt"}
    with safe_open(tmp_path / "file", framework="pt") as theirs:
        for name, tensor in tensors.items():
            for found in (file.tensor(name), theirs.get_tensor(name)):
                assert found.dtype == tensor.dtype and found.shape == tensor.shape
                assert torch.equal(found.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name


def test_files_of_others_are_read_where_they_are_unaligned_too(tmp_path: Path) -> None:
    save_file({"b": torch.arange(5.0), "a": torch.ones(3, dtype=torch.uint8), "c": torch.arange(3)}, tmp_path / "file")
    header = json.dumps(
        {"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "y": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}}
    ).encode()
    data = torch.tensor([1.5, -2.0]).numpy().tobytes()
    (tmp_path / "odd").write_bytes(len(header).to_bytes(8, "little") + header + b"\x07" + data)
    assert torch.equal(SafetensorsFile(tmp_path / "file").tensor("b"), torch.arange(5.0))
    assert SafetensorsFile(tmp_path / "odd").tensor("y").tolist() == [1.5, -2.0]


def damaged(content: bytes, how: str) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if how == "cut":
        return content[:-3]
    if how == "short":
        return content[:5]
    if how == "longer":
        return content + b"\0"
    if how == "text":
        return b"version https://example/spec/v1\nsize 12345"
    if how == "shape":
        header["a"]["shape"] = [3, 3]
    elif how == "type":
        header["a"]["dtype"] = "Q4"
    elif how == "overlap":
        header["b"]["data_offsets"] = [0, 8]
    elif how == "negative":
        header["a"]["data_offsets"] = [-8, 16]
    elif how == "keys":
        del header["a"]["dtype"]
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + content[8 + length :]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("cut", "it has .* bytes, its header describes"),
        ("short", "header would have"),
        ("longer", "its header describes"),
        ("text", "header would have"),
        ("shape", r"a has 24 bytes, expected 36 for \(3, 3\)"),
        ("type", "a has the type Q4; expected one of F64"),
        ("overlap", "begins at byte|bytes, expected"),
        ("negative", "a has 24 bytes, expected 24"),
        ("keys", "'dtype'"),
    ],
)
def test_a_broken_file_is_refused_with_the_reason(tmp_path: Path, how: str, reason: str) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, [("a", torch.zeros(2, 3)), ("b", torch.zeros(2))], {})
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(ValueError, match=f"model.safetensors is not a whole safetensors file: .*({reason}).*copy it again"):
        SafetensorsFile(path)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"weight_map": []}', '{"weight_map": {"a": "../a.safetensors"}}', '{"weight_map": {"a": 1}}']
)
def test_a_broken_index_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(ValueError, match="is not a whole index: .*copy it again"):
        SafetensorsFolder(tmp_path)


def test_shards_that_were_swapped_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        write_tensors(tmp_path / f"{name}.safetensors", [(name, torch.zeros(2))], {})
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "b.safetensors", "b": "a.safetensors"}}))
    with pytest.raises(ValueError, match="a.safetensors lacks b, which its index promises; copy it again"):
        SafetensorsFolder(tmp_path)
