"""Steps in a store: what makes one whole, what is spared, and what is moved out of the way. fsspec's store in memory is the store."""

from __future__ import annotations

import json
import uuid
from functools import partial
from pathlib import Path

import pytest

from mindspeed_vita.checkpoint.gates import Gate, gates_of, write_gate
from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.checkpoint.native.stored_aside import set_aside_others
from mindspeed_vita.checkpoint.native.stored_steps import BEGUN, StoredSteps
from mindspeed_vita.files.digest import CHECKSUM, checksum
from mindspeed_vita.files.stores import StoreError

WEIGHTS = "weights/rank_00000.safetensors"


@pytest.fixture
def steps() -> StoredSteps:
    return StoredSteps(f"memory://{uuid.uuid4().hex}/run")


def written(directory: Path, step: int, content: bytes = b"one") -> Path:
    """A local step of two files, and a line of metrics."""
    folder = directory / atomic.step_name(step)
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    files = {WEIGHTS: content * step, "state.json": b"{}"}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / atomic.CHECKSUMS).write_text(json.dumps({CHECKSUM: {name: checksum(data).hexdigest() for name, data in files.items()}}))
    with (directory / "metrics.jsonl").open("ab") as log:
        log.write(content + b" %d\n" % step)
    return folder


def sent(steps: StoredSteps, folder: Path) -> Path:
    begun = steps.begin(folder)
    if begun is not None:
        for name in {WEIGHTS, "state.json"} - {*begun[1]}:
            steps.send(folder, name)
        steps.complete(folder, begun[0])
    return folder


def whole(steps: StoredSteps) -> list[str]:
    return [name for name in steps.names() if steps.is_whole(name)]


def content(steps: StoredSteps, name: str) -> dict[str, bytes]:
    below = f"{name}/"
    return {file.removeprefix(below): steps.store.read(file) for file in steps.store.files() if file.startswith(below)}


def test_a_step_of_which_a_file_is_missing_or_short_in_the_store_does_not_become_whole(steps, tmp_path):
    folder = written(tmp_path, 1)
    marker, there = steps.begin(folder)
    assert there == []
    steps.send(folder, "state.json")
    with pytest.raises(StoreError, match=f"step_0000001 is not whole after all files were sent: {WEIGHTS} missing or of another size"):
        steps.complete(folder, marker)
    steps.store.write(f"{folder.name}/{WEIGHTS}", b"on")
    with pytest.raises(StoreError, match=f"{WEIGHTS} missing or of another size"):
        steps.complete(folder, marker)
    assert whole(steps) == []
    sent(steps, folder)
    assert whole(steps) == [folder.name] and content(steps, folder.name).keys() == {WEIGHTS, "state.json", atomic.CHECKSUMS}


def test_a_sending_that_was_interrupted_goes_on_where_it_was(steps, tmp_path):
    """Also in another process. What is not whole is sent again, and what is of another step of that name goes."""
    folder = written(tmp_path, 1)
    marker, _ = steps.begin(folder)
    for name in (WEIGHTS, "state.json"):
        steps.send(folder, name)
    steps.store.write(f"{folder.name}/{WEIGHTS}", b"o")  # its tail is lost
    assert StoredSteps(steps.address).begin(folder) == (marker, ["state.json"])
    with pytest.raises(StoreError, match=f"{WEIGHTS} missing or of another size; look who else writes there, or whether the store loses"):
        steps.complete(folder, marker)
    written(tmp_path, 1, b"two")
    assert steps.begin(folder) == ((folder / atomic.CHECKSUMS).read_bytes(), [])
    assert content(steps, folder.name).keys() == {BEGUN}
    sent(steps, folder)
    assert content(steps, folder.name)[WEIGHTS] == b"two" and steps.begin(folder) is None


def test_the_best_step_of_the_store_stays_until_a_better_one_is_whole_there(steps, tmp_path):
    for step in (1, 2, 3, 4, 5):
        written(tmp_path, step)
    atomic.mark_best(tmp_path, 1, 2.0)
    sent(steps, tmp_path / "step_0000001")
    assert steps.prune(tmp_path, 1) == []
    atomic.mark_best(tmp_path, 3, 1.0)  # it waits: the newest step goes first
    sent(steps, tmp_path / "step_0000004")
    assert steps.prune(tmp_path, 1) == [] and whole(steps) == ["step_0000001", "step_0000004"]
    assert json.loads(steps.store.read(atomic.BEST))["step"] == 1, "the store's file names a step that is there"
    sent(steps, tmp_path / "step_0000003")
    assert steps.prune(tmp_path, 1) == ["step_0000001"] and whole(steps) == ["step_0000003", "step_0000004"]
    assert json.loads(steps.store.read(atomic.BEST))["step"] == 3
    steps.store.write(atomic.BEST, b"?")
    (tmp_path / atomic.BEST).unlink()
    sent(steps, tmp_path / "step_0000005")
    with pytest.raises(ValueError, match="run/best.json does not name a step"):
        steps.prune(tmp_path, 1)
    assert "step_0000003" in whole(steps)


def test_a_best_step_that_came_while_a_better_one_was_named_stays_until_that_is_there(steps, tmp_path):
    for step in (1, 2, 3, 4):
        written(tmp_path, step)
    atomic.mark_best(tmp_path, 1, 3.0)
    sent(steps, tmp_path / "step_0000001")
    steps.prune(tmp_path, 1)
    atomic.mark_best(tmp_path, 2, 2.0)
    atomic.mark_best(tmp_path, 5, 1.0)  # measured, and not saved yet
    for step in (2, 3, 4):
        sent(steps, tmp_path / atomic.step_name(step))
    assert steps.prune(tmp_path, 1) == ["step_0000003"], "2 is the best one that is there"


def test_steps_of_another_branch_are_moved_aside_and_stay_as_they_were(steps, tmp_path):
    for step in (1, 2, 3):
        sent(steps, written(tmp_path / "a", step))
    before = {name: content(steps, name) for name in whole(steps)}
    written(tmp_path / "b", 1)  # the same bytes
    written(tmp_path / "b", 2, b"two")
    set_aside_others(steps, written(tmp_path / "b", 3, b"two"), since=1, ours=())
    assert whole(steps) == ["step_0000001"]
    for step in (2, 3):
        sent(steps, tmp_path / "b" / atomic.step_name(step))
    for name in ("step_0000002", "step_0000003"):
        assert content(steps, f"aside-{name}") == before[name] != content(steps, name)
    steps.prune(tmp_path / "b", 1)
    assert content(steps, "aside-step_0000002") == before["step_0000002"], "pruning does not see it"
    set_aside_others(steps, tmp_path / "b" / "step_0000001", since=1, ours={"step_0000003"})
    assert whole(steps) == ["step_0000003"], "ours"
    set_aside_others(steps, written(tmp_path / "c", 3, b"three"), since=1, ours=())
    assert content(steps, "aside-step_0000003") == before["step_0000003"]
    assert content(steps, "aside-step_0000003.2")[WEIGHTS] == b"two" * 3


def test_a_move_aside_that_was_interrupted_loses_nothing_and_is_done_again(steps, tmp_path, monkeypatch):
    step, other = sent(steps, written(tmp_path / "a", 2)), written(tmp_path / "b", 2, b"two")
    before = content(steps, step.name)
    for fault in ("copy", "remove"):

        def fails(*arguments: object) -> None:
            raise StoreError("slow down")

        with monkeypatch.context() as broken, pytest.raises(StoreError, match="slow down"):
            broken.setattr(steps.store, fault, fails)
            set_aside_others(steps, other, since=1, ours=())
        assert content(steps, step.name) == before
    set_aside_others(steps, other, since=1, ours=())
    assert steps.names() == [] and content(steps, f"aside-{step.name}") == before
    assert not any(".2/" in name for name in steps.store.files())


def test_a_long_move_aside_shows_that_it_moves_and_goes_on_where_it_was(tmp_path, monkeypatch):
    moves: list[None] = []
    steps = StoredSteps(f"memory://{uuid.uuid4().hex}/run", lambda: moves.append(None))
    step, other = sent(steps, written(tmp_path / "a", 2)), written(tmp_path / "b", 2, b"two")
    before, copied, plain = content(steps, step.name), [], steps.store.copy

    def copy(name: str, target: str, fails: str = "") -> None:
        if name.endswith(fails or "nothing"):
            raise StoreError("slow down")
        plain(name, target)
        copied.append(name)

    with monkeypatch.context() as broken, pytest.raises(StoreError, match="slow down"):
        broken.setattr(steps.store, "copy", partial(copy, fails=WEIGHTS))
        set_aside_others(steps, other, since=1, ours=())
    moves.clear()
    monkeypatch.setattr(steps.store, "copy", copy)
    set_aside_others(steps, other, since=1, ours=())
    assert sorted(copied) == [f"{step.name}/state.json", f"{step.name}/{WEIGHTS}"], "each once"
    assert len(moves) == 2, "the rest of the copies, and the removal"
    assert steps.names() == [] and content(steps, f"aside-{step.name}") == before
    steps.store.write(f"aside-step_0000003/{BEGUN}", b"of another step of that number")
    steps.store.write(f"aside-step_0000003/{WEIGHTS}", b"xxx" * 3)  # of the same size
    third = sent(steps, written(tmp_path / "a", 3))
    before = content(steps, third.name)
    set_aside_others(steps, written(tmp_path / "b", 3, b"two"), since=1, ours=())
    assert content(steps, "aside-step_0000003") == before


def test_gates_go_with_their_step_and_come_with_it(steps, tmp_path):
    folder, other = sent(steps, written(tmp_path / "a", 1)), written(tmp_path / "a", 2)
    for step in (folder, other):
        write_gate(step, Gate(name="held_out", measured=3.0, bound=2.0, better="lower"))
    steps.send_run_files(folder)
    steps.send_run_files(other)
    assert [name for name in steps.store.files() if name.startswith("gates/")] == ["gates/held_out.step_0000001.json"], "2 is not there"
    sent(steps, other)
    assert list(steps.gates(folder.name)) == ["held_out.step_0000001.json"]
    here = tmp_path / "b" / folder.name
    old = write_gate(here, Gate(name="held_out", measured=1.0, bound=2.0, better="lower")).read_bytes()
    steps.fetch_run_files(here.name, here.parent)
    assert [gate.held for gate in gates_of(here).values()] == [True]
    assert not gates_of(here.with_name(other.name)), "the run makes a step of its own of that number"
    assert (here.parent / "aside-gates" / "held_out.step_0000001.json").read_bytes() == old
    set_aside_others(steps, written(tmp_path / "c", 2, b"two"), since=1, ours=())
    assert "aside-step_0000002/gates/held_out.step_0000002.json" in steps.store.files()
    assert not steps.store.is_object("gates/held_out.step_0000002.json"), "the new step of the number is not judged by it"


def test_what_an_earlier_step_of_the_name_left_does_not_stay_in_the_new_one(steps, tmp_path):
    steps.store.write("step_0000001/gate.json", b"of another step")
    folder = sent(steps, written(tmp_path, 1))
    assert content(steps, folder.name).keys() == {WEIGHTS, "state.json", atomic.CHECKSUMS}


def test_run_files_of_the_store_come_with_its_step_and_local_ones_are_kept(steps, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    sent(steps, written(b, 2, b"of b"))
    atomic.mark_best(b, 2, 1.0)
    steps.prune(b, 0)
    (a / "metrics.jsonl").write_bytes(b"of a 1\n")
    atomic.mark_best(a, 1, 3.0)
    steps.fetch_run_files("step_0000001", a)
    assert (a / "metrics.jsonl").read_bytes() == b"of b 2\n" and atomic.best_step(a) == a / "step_0000002"
    assert (a / "aside-metrics.jsonl").read_bytes() == b"of a 1\n" and json.loads((a / "aside-best.json").read_text())["step"] == 1
    steps.fetch_run_files("step_0000001", a)  # the same again: nothing to keep
    (a / "metrics.jsonl").write_bytes(b"of a 3\n")
    steps.fetch_run_files("step_0000001", a)
    names = {"metrics.jsonl", "aside-metrics.jsonl", "aside-metrics.jsonl.2", "best.json", "aside-best.json"}
    assert {path.name for path in a.iterdir()} == names


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "weights//x", "./x", "weights/.."])
def test_names_that_lead_out_of_a_step_are_refused(steps, tmp_path, name):
    sums = json.dumps({CHECKSUM: {name: "0"}}).encode()
    steps.store.write(f"step_0000001/{atomic.CHECKSUMS}", sums)
    with pytest.raises(atomic.DamagedCheckpoint, match="step_0000001 is damaged: .* names .*, which could lead out of its folder"):
        steps.listed("step_0000001")
    with pytest.raises(ValueError, match="which could lead out of its folder"):
        steps.fetch("step_0000001", tmp_path / "step", [name], sums)
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_is_a_pattern_is_refused() -> None:
    """A removal in it would reach other runs."""
    with pytest.raises(ValueError, match=r"runs/lr\[12\] has characters of a pattern .*expected the address of one run"):
        StoredSteps("memory://bucket/runs/lr[12]")
