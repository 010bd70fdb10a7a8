"""What appears under a name is whole: a process that dies at any point leaves the old content or the new."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mindspeed_vita.files.publish import publish_folder, restore, temporary_beside, whole_file, whole_folder


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs, apart from what Python itself unwinds."""


def die_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """The process dies just before its system call with this number; returns the calls that are made."""
    calls: list[str] = []

    def counted(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object, **named: object) -> None:
            if len(calls) + 1 >= number:
                raise Killed
            calls.append(name)
            real(*arguments, **named)

        return call

    for place, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (shutil, "rmtree"), (Path, "unlink")):
        monkeypatch.setattr(place, name, counted(name, getattr(place, name)))
    return calls


def make(folder: Path, content: str) -> Path:
    """A folder of two files, one of which says that it is whole."""
    (folder / "part").mkdir(parents=True)
    for name in ("part/data", "whole.json"):
        (folder / name).write_text(content)
    return folder


def content_of(folder: Path) -> set[str]:
    return {(folder / name).read_text() for name in ("part/data", "whole.json")}


def test_equal_process_numbers_on_two_hosts_give_different_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {temporary_beside(tmp_path / "x") for _ in range(3)}
    monkeypatch.setattr(platform, "node", lambda: "other")
    names.add(temporary_beside(tmp_path / "x"))
    assert len(names) == 4 and {name.parent for name in names} == {tmp_path}
    assert any(".other." in name.name for name in names)


@pytest.mark.parametrize("number", range(1, 11))
def test_a_folder_replaced_by_a_process_that_dies_is_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    target = make(tmp_path / "target", "old")
    temporary = make(tmp_path / ".new", "new")
    with monkeypatch.context() as patch:
        die_at(patch, number)
        with suppress(Killed):
            publish_folder(temporary, target, known_by="whole.json", replace=True)
    restore(target, known_by="whole.json")
    assert content_of(target) == {"old" if temporary.exists() else "new"}
    assert {path.name for path in tmp_path.iterdir()} - {".new"} == {"target"}


def test_the_points_of_death_cover_the_whole_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, temporary = make(tmp_path / "target", "old"), make(tmp_path / ".new", "new")
    with monkeypatch.context() as patch:
        calls = die_at(patch, 99)
        publish_folder(temporary, target, known_by="whole.json", replace=True)
    assert calls == ["fsync"] * 4 + ["rmtree", "rename", "rename", "fsync", "rmtree"]


@pytest.mark.parametrize("number", range(1, 6))
def test_a_file_replaced_by_a_process_that_dies_is_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / "file").write_text("old")
    with monkeypatch.context() as patch:
        die_at(patch, number)
        with suppress(Killed), whole_file(tmp_path / "file") as temporary:
            temporary.write_text("new")
    assert (tmp_path / "file").read_text() == ("old" if number <= 2 else "new")


def test_a_failure_leaves_the_file_and_no_rest(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(ValueError, match="half"), whole_file(tmp_path / "file") as temporary:
        temporary.write_text("ne")
        raise ValueError("half")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"


def test_who_comes_second_takes_the_whole_folder_that_is_there(tmp_path: Path) -> None:
    target = make(tmp_path / "target", "first")
    with whole_folder(target, known_by="whole.json") as temporary:
        make(temporary, "second")
    assert content_of(target) == {"first"} and [path.name for path in tmp_path.iterdir()] == ["target"]
    (target / "whole.json").unlink()
    with pytest.raises(OSError, match="target"), whole_folder(target, known_by="whole.json") as temporary:
        make(temporary, "third")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_folder_whose_successor_cannot_take_its_name_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, temporary, rename = make(tmp_path / "target", "old"), make(tmp_path / ".new", "new"), os.rename

    def refused(source: Path, to: Path) -> None:
        if source == temporary:
            raise OSError(5, "Input/output error")
        rename(source, to)

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(OSError, match="Input/output error"):
        publish_folder(temporary, target, known_by="whole.json", replace=True)
    assert content_of(target) == {"old"} and sorted(path.name for path in tmp_path.iterdir()) == [".new", "target"]
