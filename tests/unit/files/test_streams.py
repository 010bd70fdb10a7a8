"""Streams: bytes as the plain writers', one group in memory, errors where they arise."""

from __future__ import annotations

import threading
import weakref
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mindspeed_vita.files.digest import checksum_of
from mindspeed_vita.files.read_ahead import read_ahead
from mindspeed_vita.files.safetensors_file import SafetensorsFile, write_tensors
from mindspeed_vita.files.shard_stream import Journal, ShardFile, cut, write_stream
from mindspeed_vita.files.tensors import Group, Made, Spec, cast, held, joined, one_by_one, same
from mindspeed_vita.files.torch_stream import write_torch

TENSORS = {f"t{number}": torch.randn(number % 4 + 1, 5, generator=torch.Generator().manual_seed(number)) for number in range(9)}


def test_a_stream_writes_the_bytes_of_the_plain_writer(tmp_path: Path) -> None:
    tensors = held({**TENSORS, "scalar": torch.tensor(2.0), "bool": torch.tensor([True, False])})
    parts = cut(tensors.specs(), 100)
    files = [ShardFile(f"f{number}", part, {"format": "pt"}) for number, part in enumerate(parts)]
    journal, seen = Journal(tmp_path, {}), []
    journal.begin()
    sums = write_stream(tmp_path, files, one_by_one(tensors), journal, seen.append)
    assert sum(seen) == sum(file.nbytes for file in files) == sum((tmp_path / file.name).stat().st_size for file in files)
    for file in files:
        plain = write_tensors(tmp_path / "plain", [(name, tensors[name]) for name in file.tensors], {"format": "pt"})
        assert plain == sums[file.name] == checksum_of(tmp_path / file.name)
    assert len(files) > 4 and all(len(part) == 1 or sum(spec.nbytes for spec in part.values()) <= 100 for part in parts)


@pytest.mark.parametrize(("dtype", "parts"), [(torch.float32, 1), (torch.bfloat16, 3), (torch.uint8, 1)])
def test_a_streamed_file_is_what_torch_loads(tmp_path: Path, dtype: torch.dtype, parts: int) -> None:
    tensors = {name: (tensor * 9).to(dtype) for name, tensor in TENSORS.items()}
    specs = {name: Spec.of(tensor) for name, tensor in tensors.items()}
    asked: list[str] = []
    (tmp_path / "plain").mkdir()

    def take(name: str) -> Iterator[torch.Tensor]:
        asked.append(name)
        yield from tensors[name].view(-1).tensor_split(parts)

    write_torch(tmp_path / "file.pt", lambda found: {"model": dict(found), "iteration": 3}, specs, take, lambda size: None)
    for mmap in (False, True):
        found = torch.load(tmp_path / "file.pt", weights_only=True, mmap=mmap)
        assert found["iteration"] == 3 and found["model"].keys() == tensors.keys()
        assert all(same(found["model"][name], tensors[name]) for name in tensors)
    assert asked == list(tensors)
    with zipfile.ZipFile(tmp_path / "file.pt") as archive:
        assert archive.testzip() is None, "every checksum is right"
    torch.save({"model": tensors, "iteration": 3}, tmp_path / "plain" / "file.pt")
    whole, plain = ((folder / "file.pt").read_bytes() for folder in (tmp_path, tmp_path / "plain"))
    assert len(whole) == len(plain) and whole.count(b"PK\x07\x08") == plain.count(b"PK\x07\x08")
    at = plain.index(b"serialization_id")
    assert whole[:at] == plain[:at], "the file of torch.save, up to the number that torch makes of an empty file's checksums"


def test_groups_in_use_are_no_larger_than_the_largest(tmp_path: Path) -> None:
    in_use, most, lock = 0, 0, threading.Lock()
    sizes = [4, 1, 1, 1, 3, 4, 2, 2]

    def group(number: int, size: int) -> Group:
        def make() -> tuple[torch.Tensor, ...]:
            nonlocal in_use, most
            with lock:
                in_use += size
                most = max(most, in_use)
            return (torch.full((size,), float(number)),)

        return Group({str(number): Spec(torch.float32, (size,))}, make)

    for name, tensor in read_ahead([group(number, size) for number, size in enumerate(sizes)], lambda name: True):
        assert tensor.tolist() == [float(name)] * sizes[int(name)]
        with lock:
            in_use -= len(tensor)
    assert most <= 5, "four, and the one that the consumer has just given back"


def test_an_error_of_a_tensor_arrives_where_it_is_taken() -> None:
    def fails() -> tuple[torch.Tensor, ...]:
        raise ValueError("no such piece")

    groups = [*one_by_one(held({"a": torch.ones(1)})), Group({"b": Spec(torch.float32, (1,))}, fails)]
    stream = read_ahead(groups, lambda name: True)
    assert next(stream)[0] == "a"
    with pytest.raises(ValueError, match="no such piece"):
        next(stream)
    assert not [thread for thread in threading.enumerate() if thread.name == "vita-read"]


def test_mappings_read_nothing_until_asked() -> None:
    asked: list[str] = []
    specs = {"a": Spec(torch.float32, (2,)), "b": Spec(torch.float32, (3,))}
    lazy = Made(specs, lambda name: (asked.append(name), torch.zeros(specs[name].shape))[1])
    both = joined(cast(lazy, torch.bfloat16), {"b": torch.ones(3, dtype=torch.bfloat16), "c": torch.ones(1)})
    assert list(both) == ["a", "b", "c"] and both.shapes() == {"a": (2,), "b": (3,), "c": (1,)} and asked == []
    assert both["a"].dtype is torch.bfloat16 and both["b"].tolist() == [1, 1, 1] and asked == ["a"]
    with pytest.raises(KeyError):
        lazy["x"]


def test_equal_bits_are_the_same_also_where_they_are_no_number() -> None:
    odd = torch.tensor([float("nan"), 1.0])
    assert same(odd, odd.clone()) and not torch.equal(odd, odd.clone())
    assert not same(odd, odd.double()) and not same(odd, odd[:1]) and not same(torch.tensor(0.0), torch.tensor(-0.0))


def test_a_mapped_tensor_takes_no_memory_and_leaves_the_file_alone(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", [("a", torch.zeros(1 << 22))], {})
    digest = checksum_of(tmp_path / "file")  # reads in blocks, which the process may keep for the next time
    before = anonymous()
    tensor = SafetensorsFile(tmp_path / "file").tensor("a")
    assert float(tensor.sum()) == 0 and anonymous() - before < 8 << 20
    tensor[0] = 1.0
    assert checksum_of(tmp_path / "file") == digest


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def test_a_written_tensor_is_gone_before_the_next_is_made(tmp_path: Path) -> None:
    """Groups as large as the largest are made one after the other, and none stays."""
    alive: list[weakref.ref[np.ndarray]] = []

    def make(number: int) -> Callable[[], tuple[torch.Tensor, ...]]:
        def made() -> tuple[torch.Tensor, ...]:
            assert not [each for each in alive if each() is not None], number
            memory = np.full(1000, number, dtype=np.float32)
            alive.append(weakref.ref(memory))
            return (torch.from_numpy(memory),)

        return made

    groups = [Group({f"t{number}": Spec(torch.float32, (1000,))}, make(number)) for number in range(6)]
    file = ShardFile("file", {name: spec for group in groups for name, spec in group.specs.items()}, {})
    journal = Journal(tmp_path, {})
    journal.begin()
    write_stream(tmp_path, [file], groups, journal, lambda size: None)
    assert len(alive) == 6
