"""Files and folders that appear whole: errors name the file, interrupted replacements are undone."""

from __future__ import annotations

import hashlib
import json
import os
import resource
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.checkpoint.native.stored_steps import recorded_in
from mindspeed_vita.files.publish import whole_file
from mindspeed_vita.files.writing import write_bytes, write_json


def test_a_file_that_does_not_fit_on_the_disk_is_named(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="File too large: .*state.json") as caught:
            write_json(tmp_path / "state.json", {"text": "x" * 200})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(tmp_path / "state.json")


def _publish(directory: Path, step: int, content: bytes) -> Path:
    temp, final = atomic.temporary(directory, step), directory / atomic.step_name(step)
    temp.mkdir()
    atomic.publish(temp, final, {"data": write_bytes(temp / "data", content)})
    return final


def test_a_step_whose_replacement_was_killed_between_the_renames_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = _publish(tmp_path, 1, b"old")
    rename = os.rename

    def killed(source: Path, target: Path) -> None:
        if Path(source).name.startswith(".writing-"):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        _publish(tmp_path, 1, b"new")
    monkeypatch.undo()
    assert not step.exists()

    assert atomic.prune(tmp_path, keep=0) == []
    assert [path.name for path in tmp_path.iterdir()] == [step.name]
    assert (step / "data").read_bytes() == b"old" and atomic.verify(step, atomic.recorded(step)) == []


def test_a_replaced_step_that_a_crash_left_behind_goes(tmp_path: Path) -> None:
    step = _publish(tmp_path, 1, b"old")
    os.rename(step, tmp_path / f".replaced-{step.name}")
    _publish(tmp_path, 1, b"new")
    assert atomic.prune(tmp_path, keep=0) == []
    assert [path.name for path in tmp_path.iterdir()] == [step.name] and (step / "data").read_bytes() == b"new"


def test_the_checksums_of_version_0_1_0_still_find_damage(tmp_path: Path) -> None:
    step = _publish(tmp_path, 1, b"content")
    old = {"sha256": {"data": hashlib.sha256(b"content").hexdigest()}}
    (step / atomic.CHECKSUMS).write_text(json.dumps(old))
    assert atomic.verify(step, ["data"]) == []
    (step / "data").write_bytes(b"damaged")
    assert atomic.verify(step, ["data"]) == ["data does not match its checksum"]


def test_checksums_of_an_unknown_kind_are_no_checksums(tmp_path: Path) -> None:
    step = _publish(tmp_path, 1, b"content")
    (step / atomic.CHECKSUMS).write_text(json.dumps({"crc32": {"data": "00"}}))
    with pytest.raises(atomic.DamagedCheckpoint, match="it has crc32, expected xxh128 or sha256"):
        atomic.recorded(step)


def test_a_kill_while_pruning_leaves_nothing_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2, 3):
        _publish(tmp_path, number, b"x")
    calls = {"unlink": os.unlink, "rmdir": os.rmdir, "rename": os.rename}
    kills, done = 0, [0]

    def killed(name: str, *arguments: Any, **more: Any) -> None:
        if done[0]:
            raise KeyboardInterrupt
        done[0] += 1
        calls[name](*arguments, **more)

    while (tmp_path / atomic.step_name(1)).exists() or list(tmp_path.glob(".removing-*")):
        done[0] = 0
        for name in calls:
            monkeypatch.setattr(os, name, partial(killed, name))
        with suppress(KeyboardInterrupt):
            atomic.prune(tmp_path, keep=2)
        monkeypatch.undo()
        kills += 1
        assert [path.name for path in atomic.complete_steps(tmp_path)][-2:] == ["step_0000002", "step_0000003"]
        assert all(atomic.verify(step, atomic.recorded(step)) == [] for step in atomic.complete_steps(tmp_path))
    assert kills > 3, "it was killed after each call"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_0000002", "step_0000003"]


def test_what_earlier_versions_left_while_pruning_goes_and_newer_folders_stay(tmp_path: Path) -> None:
    for number in (1, 2, 3, 4):
        _publish(tmp_path, number, b"x")
    for number in (1, 4):  # 4: of something that is copied into the folder, perhaps
        (tmp_path / atomic.step_name(number) / atomic.CHECKSUMS).unlink()
    (tmp_path / "best.json.host.0f0f.tmp").write_text("{}")
    (tmp_path / ".writing-step_0000005" / "weights").mkdir(parents=True)
    atomic.recover(tmp_path)
    assert not (tmp_path / ".writing-step_0000005").exists(), "it would take room from the next save"
    atomic.prune(tmp_path, keep=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [atomic.step_name(number) for number in (1, 2, 3, 4)]
    atomic.prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [atomic.step_name(number) for number in (2, 3, 4)]


def test_pruning_spares_the_best_step_and_says_beforehand_what_goes(tmp_path: Path) -> None:
    steps = [_publish(tmp_path, step, b"x") for step in (1, 2, 3, 4)]
    atomic.mark_best(tmp_path, 2, 1.5)
    assert atomic.surplus(tmp_path, 1) == [steps[0], steps[2]] == atomic.prune(tmp_path, keep=1)
    assert atomic.complete_steps(tmp_path) == [steps[1], steps[3]]
    atomic.mark_best(tmp_path, None)
    assert atomic.prune(tmp_path, keep=1) == [steps[1]]


def test_the_best_step_on_the_disk_stays_until_a_better_one_is_there(tmp_path: Path) -> None:
    """A better one is named before it is saved. The process may be killed in between, and pruning may come from another thread."""
    steps = {step: _publish(tmp_path, step, b"x") for step in (1, 2, 3)}
    atomic.mark_best(tmp_path, 1, 2.0)
    atomic.mark_best(tmp_path, 4, 1.5)  # on its way
    atomic.mark_best(tmp_path, 6, 1.0)  # measured while 4 is still written
    assert atomic.best_step(tmp_path) == tmp_path / "step_0000006" and atomic.kept_best(tmp_path) == steps[1]
    assert atomic.prune(tmp_path, keep=1) == [steps[2]]
    steps.update({step: _publish(tmp_path, step, b"x") for step in (4, 5)})
    assert atomic.prune(tmp_path, keep=1) == [steps[1], steps[3]] and atomic.kept_best(tmp_path) == steps[4]
    steps[6] = _publish(tmp_path, 6, b"x")
    assert atomic.prune(tmp_path, keep=1) == [steps[4], steps[5]]
    atomic.mark_best(tmp_path, 8, 0.5)
    atomic.mark_best(tmp_path, 6, 1.0)  # the start after a kill
    assert json.loads((tmp_path / atomic.BEST).read_text()) == {"step": 6, "loss": 1.0, "before": []}
    (tmp_path / atomic.BEST).write_text('{"step": 6, "before": ["two"]}')
    with pytest.raises(ValueError, match="best.json does not name a step .*; remove it, and the best step may be pruned"):
        atomic.kept_best(tmp_path)
    (tmp_path / atomic.BEST).write_text('{"step": 6, "loss": 1.0}')  # of an earlier version
    assert atomic.kept_best(tmp_path) == steps[6]


@pytest.mark.parametrize("told", ['{"step": "two"}', '{"step": 1e999}', "[" * 100_000])
def test_a_marker_that_names_no_step_is_refused_before_anything_goes(tmp_path: Path, told: str) -> None:
    steps = [_publish(tmp_path, step, b"x") for step in (1, 2)]
    (tmp_path / atomic.BEST).write_text(told)
    with pytest.raises(ValueError, match="best.json does not name a step .*; remove it, and the best step may be pruned"):
        atomic.prune(tmp_path, keep=1)
    (tmp_path / atomic.BEST).unlink()
    (tmp_path / atomic.UNSENT).write_text(told)
    with pytest.raises(ValueError, match="to_store.json does not name steps .*; remove it, and pruning spares none of them"):
        atomic.prune(tmp_path, keep=1)
    assert atomic.complete_steps(tmp_path) == steps


@pytest.mark.parametrize("told", ['{"xxh128": [[1, 2]]}', '{"xxh128": ["ab"]}', '{"xxh128": {"a": 5}}', "[" * 100_000, "{}"])
def test_a_checksum_file_that_is_none_makes_a_damaged_step(tmp_path: Path, told: str) -> None:
    step = _publish(tmp_path, 1, b"x")
    (step / atomic.CHECKSUMS).write_text(told)
    with pytest.raises(atomic.DamagedCheckpoint, match="checksums.json cannot be read"):
        atomic.recorded(step)
    with pytest.raises(atomic.DamagedCheckpoint, match="checksums.json cannot be taken"):
        recorded_in(told.encode(), "s3://bucket/run/step_0000001")


@pytest.mark.parametrize("file", ["best.json", "to_store.json"])
def test_pruning_leaves_a_file_alone_that_another_thread_is_writing(tmp_path: Path, file: str) -> None:
    """A save that is published in the background prunes while the run goes on."""
    with whole_file(tmp_path / file) as temporary:
        temporary.write_text('{"step": 1, "steps": []}')
        atomic.prune(tmp_path, keep=1)
    assert (tmp_path / file).is_file()
    with suppress(RuntimeError), whole_file(tmp_path / file) as temporary:
        temporary.write_text("half")
        raise RuntimeError("killed")
    atomic.recover(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [file]
