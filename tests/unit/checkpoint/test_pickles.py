"""The one unpickler: whatever a file says, it builds tensors and plain values, or is refused in one line."""

from __future__ import annotations

import io
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from mindspeed_vita.checkpoint.megatron.pickles import Inert, _Restricted, read_pickle, read_tensor

RAN: list[str] = []


class Evil:
    """Would run code when a pickle is read."""

    def __reduce__(self) -> Any:
        return (RAN.append, ("ran",))


def test_only_listed_classes_are_built() -> None:
    for value in (Evil(), Path("x"), io.StringIO, random.Random(1), {1: Evil()}):
        found = _Restricted(io.BytesIO(pickle.dumps(value))).load()
        assert isinstance(found, Inert) or found is Inert or isinstance(found[1], Inert)
    for module, name in (
        ("builtins", "eval"),
        ("os", "system"),
        ("torch", "load"),
        ("torch", "hub"),
        ("mindspeed_vita", "x"),
        ("a.b", "c"),
    ):
        assert _Restricted(io.BytesIO(pickle.dumps(1))).find_class(module, name) is Inert
    assert _Restricted(io.BytesIO(pickle.dumps(1))).find_class("torch", "bfloat16") is torch.bfloat16
    assert RAN == []


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + b"\0" * 40])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(ValueError, match="file.pt is not a whole file of torch.save: .*copy it again"):
        read_pickle(tmp_path / "file.pt")


def test_a_file_without_a_dict_is_refused(tmp_path: Path) -> None:
    torch.save([1], tmp_path / "file.pt")
    with pytest.raises(ValueError, match="holds a list; expected a dict"):
        read_pickle(tmp_path / "file.pt")


def test_a_number_that_would_take_all_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="object number 4026531840 at byte"):
        _Restricted(io.BytesIO(b"\x80\x02}r\x00\x00\x00\xf0."))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)
    for read in (lambda: read_pickle(path), lambda: read_tensor(path, 0, path.stat().st_size)):
        with pytest.raises(ValueError, match="script.pt is not a whole file of torch.save: it is a TorchScript archive"):
            read()


def test_changed_pickles_run_nothing_and_fail_in_one_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four hundred files whose pickle has bytes changed, cut or put in at random; every fourth has a record of TorchScript too."""
    monkeypatch.setattr(torch.jit, "load", lambda *arguments, **named: RAN.append("torch.jit.load"))
    torch.save(
        {"model": {"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}, "args": Evil(), "iteration": 7}, tmp_path / "whole"
    )
    with zipfile.ZipFile(tmp_path / "whole") as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    chance, refused = random.Random(0), 0
    for number in range(400):
        content = bytearray(entries[name])
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(content))
            how = chance.choice(("change", "cut", "put"))
            if how == "change":
                content[at] = chance.randrange(256)
            elif how == "cut":
                del content[at : at + chance.randint(1, 8)]
            else:
                content[at:at] = chance.choice((b"c", b"R", b".", b"b", b"Q", b"cos\nsystem\n", b"(", b"s", b"e", b"\x81"))
        with zipfile.ZipFile(tmp_path / "file", "w") as archive:
            for entry, value in entries.items():
                archive.writestr(entry, bytes(content) if entry == name else value)
            if number % 4 == 0:
                archive.writestr(name.replace("data.pkl", "constants.pkl"), bytes(content))
        for read in (lambda: read_pickle(tmp_path / "file"), lambda: read_tensor(tmp_path / "file", 0, (tmp_path / "file").stat().st_size)):
            try:
                read()
                assert number % 4
            except ValueError as error:
                refused += 1
                assert "\n" not in str(error)
    assert RAN == [] and refused > 300
