"""Checkpoints in an object store: sent behind training's back, taken up where the run's folder is gone, and never in training's way."""

from __future__ import annotations

import builtins
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mindspeed_vita.checkpoint.gates import Gate, write_gate
from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.checkpoint.native.stored_steps import StoredSteps
from mindspeed_vita.engine import uploading
from mindspeed_vita.engine.loop import train
from mindspeed_vita.engine.resuming import Resume
from mindspeed_vita.files.stores import Store, StoreError


class Moody(MemoryFileSystem):
    """A store in memory that refuses the next `refusals` writes, and answers none while `answers` is not set."""

    protocol = "moody"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    refusals = 0
    answers = threading.Event()
    put: list[str] = []
    """Objects that were sent."""

    def _write(self) -> None:
        self.answers.wait()
        if type(self).refusals > 0:
            type(self).refusals -= 1
            raise OSError("slow down")

    def put_file(self, path: str, target: str, **options: Any) -> Any:
        self._write()
        self.put.append(target.partition("/run/")[2])
        return super().put_file(path, target, **options)

    def pipe_file(self, *arguments: Any, **options: Any) -> Any:
        self._write()
        return super().pipe_file(*arguments, **options)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An empty store for a run."""
    fsspec.register_implementation("moody", Moody, clobber=True)
    Moody.store.clear()
    Moody.put.clear()
    Moody.refusals = 0
    Moody.answers.set()
    monkeypatch.setattr(uploading, "FIRST_PAUSE", 0.01)
    yield Store("moody://bucket/run")
    Moody.refusals = 0
    Moody.answers.set()


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory) -> Path:
    """Nine steps without a store."""
    directory = tmp_path_factory.mktemp("straight")
    train(tiny.recipe(directory, train={"steps": 9}, checkpoint={"save_every": 3}))
    return directory


@pytest.fixture
def recipe(tiny, tmp_path, store):
    """Nine steps that are saved every third, here and in the store."""

    def make(name: str = "run", **checkpoint: Any) -> Any:
        return tiny.recipe(
            tmp_path / name, train={"steps": 9}, checkpoint={"save_every": 3, "keep": 2, "store": store.address, **checkpoint}
        )

    return make


def whole(store: Store) -> list[str]:
    return [name.partition("/")[0] for name in store.files() if name.startswith("step_") and name.endswith(f"/{atomic.CHECKSUMS}")]


def contents(store: Store, name: str) -> dict[str, bytes]:
    below = f"{name}/"
    return {file.removeprefix(below): store.read(file) for file in store.files() if file.startswith(below)}


def test_a_run_whose_folder_is_gone_continues_from_the_store(recipe, store, straight, curve, tmp_path, capfd):
    train(recipe(), stop_at_step=7)
    assert whole(store) == ["step_0000006", "step_0000007"], "pruned by the same rule"
    assert not any(name.startswith("step_0000003") for name in store.files())
    local = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("step_*/**/*") if path.is_file()}
    assert local <= store.files().keys()
    shutil.rmtree(tmp_path / "run")
    result = train(recipe())
    assert curve(tmp_path / "run") == curve(straight) and result.step == 9
    told = capfd.readouterr().err
    assert "step_0000007 was fetched from moody://bucket/run" in told and "step_0000009 is in moody://bucket/run" in told
    train(recipe())  # nothing to do, and nothing to send
    assert whole(store) == ["step_0000007", "step_0000009"] and not (tmp_path / "run" / atomic.UNSENT).exists()


def test_steps_that_are_half_sent_or_damaged_are_passed_over_by_name(recipe, store, straight, curve, tmp_path, capfd):
    train(recipe(keep=0), stop_at_step=7)
    store.remove(f"step_0000007/{atomic.CHECKSUMS}")
    weights = next(name for name in store.files() if name.startswith("step_0000006/weights"))
    store.write(weights, store.read(weights)[:-1] + b"?")
    shutil.rmtree(tmp_path / "run")
    train(recipe(), stop_at_step=4)
    told = capfd.readouterr().err
    assert "passed over moody://bucket/run/step_0000007: it was never sent whole" in told
    assert "passed over moody://bucket/run/step_0000006: weights/rank_00000.safetensors does not match its checksum" in told
    assert curve(tmp_path / "run") == curve(straight)[:4], "from step 3"
    assert whole(store) == ["step_0000003", "step_0000004"], "the damaged one is set aside"
    assert f"aside-step_0000006/{atomic.CHECKSUMS}" in store.files()
    for name in whole(store):
        store.write(f"{name}/recipe.json", b"{}")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(ValueError, match=r"no step of moody://bucket/run can be taken: .*step_0000004: recipe.json .*step_0000003: recipe"):
        train(recipe())


def test_a_damaged_newer_step_of_the_store_does_not_end_a_run_that_has_its_own(recipe, store, straight, curve, tmp_path, capfd):
    train(recipe(keep=0), stop_at_step=7)
    shutil.rmtree(tmp_path / "run" / "step_0000007")
    store.write("step_0000007/recipe.json", b"{}")
    train(recipe(keep=0), stop_at_step=8)
    told = capfd.readouterr().err
    assert "passed over moody://bucket/run/step_0000007: recipe.json does not match its checksum" in told
    assert "no newer step of moody://bucket/run can be taken, so the run goes on from its own step_0000006" in told
    assert curve(tmp_path / "run") == curve(straight)[:8]
    store.write("step_0000003/recipe.json", b"{}")
    with pytest.raises(ValueError, match="--resume-from moody://bucket/run/step_0000003 cannot be taken: .*or name another step"):
        train(recipe("new"), resume=Resume(step="moody://bucket/run/step_0000003"))


def test_a_store_that_refuses_for_a_while_is_tried_again(recipe, store, straight, curve, tmp_path, capfd):
    Moody.refusals = 3
    train(recipe(background=True))
    told = capfd.readouterr().err
    assert "could not be sent: moody://bucket/run/step_0000003" in told and "slow down" in told and "is tried again in" in told
    assert "step_0000009 is in moody://bucket/run" in told and "step_0000009" in whole(store)
    assert curve(tmp_path / "run") == curve(straight)


def test_a_store_that_is_gone_costs_no_step_and_the_next_start_sends_it(recipe, store, tmp_path, capfd):
    Moody.refusals = 10**6
    train(recipe(keep=1, keep_unsent=True), stop_at_step=7)
    assert not store.files()
    assert "step_0000003, step_0000006, step_0000007: not in moody://bucket/run; the next start" in capfd.readouterr().err
    assert [path.name for path in atomic.complete_steps(tmp_path / "run")] == ["step_0000003", "step_0000006", "step_0000007"]
    assert atomic.surplus(tmp_path / "run", 1) == []
    Moody.refusals = 0
    train(recipe(keep=1, keep_unsent=True))
    assert whole(store) == ["step_0000009"]
    train(recipe("other", keep=1, resume=True, store="moody://bucket/other"), resume=Resume(step="moody://bucket/run"))
    assert [path.name for path in atomic.complete_steps(tmp_path / "other")] == ["step_0000009"]


def test_steps_that_wait_are_sent_by_the_next_start_without_keep_unsent_too(recipe, store, tmp_path, capfd):
    Moody.refusals = 10**6
    train(recipe(), stop_at_step=7)
    local = [path.name for path in atomic.complete_steps(tmp_path / "run")]
    assert "step_0000006" in local and not store.files()
    assert f"{', '.join(local)}: not in moody://bucket/run; the next start" in capfd.readouterr().err
    assert [path.name for path in atomic.surplus(tmp_path / "run", 1)] == local[:-1], "pruning spares none"
    train(recipe(store=""), stop_at_step=7)  # a start without a store forgets nothing
    Moody.refusals = 0
    train(recipe(), stop_at_step=7)
    assert whole(store) == ["step_0000006", "step_0000007"] and not (tmp_path / "run" / atomic.UNSENT).exists()


def test_the_end_of_a_run_does_not_wait_for_a_call_that_never_returns(recipe, store, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(uploading, "PATIENCE", 0.5)
    Moody.answers.clear()
    train(recipe(), stop_at_step=3)
    told = capfd.readouterr().err
    assert "moody://bucket/run has not answered for 0.5 s" in told
    assert "step_0000003: not in moody://bucket/run; the next start of the same command sends it" in told
    assert atomic.unsent_steps(tmp_path / "run") == ["step_0000003"]


def test_a_move_aside_that_takes_longer_than_the_patience_is_no_hang(recipe, store, tmp_path, monkeypatch, capfd):
    """By a clock on which each copy takes 1,000 seconds."""
    train(recipe(keep=0), stop_at_step=7)
    plain, now, pause, looked = Moody.cp_file, [0.0], time.sleep, threading.Event()

    def copy(*arguments: Any, **options: Any) -> None:
        now[0] += 1000
        for _ in range(2):  # the second look of the run's end began after that
            looked.clear()
            assert looked.wait(60)
        plain(*arguments, **options)

    def sleep(seconds: float) -> None:
        looked.set()
        pause(0.01)

    monkeypatch.setattr(Moody, "cp_file", copy)
    monkeypatch.setattr(uploading, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    train(recipe(keep=0), stop_at_step=4, resume=Resume(step="3"))
    assert now[0] > 5 * uploading.PATIENCE and "has not answered" not in capfd.readouterr().err
    assert whole(store) == ["step_0000003", "step_0000004"] and not (tmp_path / "run" / atomic.UNSENT).exists()


def test_a_try_goes_on_where_the_one_before_ended(recipe, store, tmp_path, monkeypatch):
    train(recipe(store=""), stop_at_step=3)
    lines: list[str] = []
    uploads = uploading.Uploads(recipe().checkpoint, lines.append)
    plain = Moody.put_file

    def refuse_the_last(self: Moody, path: str, target: str, **options: Any) -> None:
        if target.endswith("rank_00000.safetensors") and "/weights/" in target and not lines:
            raise OSError("slow down")
        plain(self, path, target, **options)

    monkeypatch.setattr(Moody, "put_file", refuse_the_last)
    uploads.finish()
    files = sorted(f"step_0000003/{name}" for name in atomic.recorded(tmp_path / "run" / "step_0000003"))
    assert sorted(Moody.put) == files, "each once, the last one in the second try"
    assert len(lines) == 2 and "slow down" in lines[0] and whole(store) == ["step_0000003"]


def test_a_file_that_a_host_does_not_see_keeps_the_step_from_being_whole(recipe, store, tmp_path, monkeypatch, capfd):
    train(recipe(store=""), stop_at_step=3)
    monkeypatch.setattr(uploading, "LAST_TRIES", 1)
    weights = tmp_path / "run" / "step_0000003" / "weights"
    weights.rename(tmp_path / "hidden")
    lines: list[str] = []
    uploads = uploading.Uploads(recipe().checkpoint, lines.append)
    uploads.finish()
    assert "step_0000003 could not be sent" in lines[0] and "No such file" in lines[0] and "weights/rank_00000.safetensors" in lines[0]
    assert whole(store) == []
    (tmp_path / "hidden").rename(weights)
    uploads.finish()
    assert whole(store) == ["step_0000003"]


def test_a_store_where_pruning_fails_has_the_step_all_the_same(recipe, store, tmp_path, monkeypatch):
    train(recipe(keep=0), stop_at_step=7)
    lines: list[str] = []
    plain = StoredSteps.prune

    def refuse(*arguments: Any) -> Any:
        raise StoreError("no right to remove")

    monkeypatch.setattr(StoredSteps, "prune", refuse)
    gate = Gate(name="held_out", measured=3.0, bound=2.0, better="lower")
    write_gate(tmp_path / "run" / "step_0000007", gate)
    uploading.Uploads(recipe(keep=1).checkpoint, lines.append).finish()
    assert lines == ["step_0000007 is in moody://bucket/run, but pruning there failed: no right to remove; the next step tries it again"]
    assert store.is_object("gates/held_out.step_0000007.json") and not (tmp_path / "run" / atomic.UNSENT).exists()
    monkeypatch.setattr(StoredSteps, "prune", plain)
    atomic.mark_best(tmp_path / "run", 3)
    write_gate(tmp_path / "run" / "step_0000003", gate)
    uploading.Uploads(recipe(keep=1).checkpoint, lines.append).finish()
    assert whole(store) == ["step_0000003", "step_0000007"] and len(lines) == 1
    assert store.is_object("gates/held_out.step_0000003.json"), "of the best step, too"


def test_going_back_to_an_earlier_step_sets_newer_ones_aside_in_the_store_too(recipe, store, tmp_path, capfd):
    train(recipe(keep=0), stop_at_step=7)
    before = contents(store, "step_0000006")
    shutil.rmtree(tmp_path / "run" / "step_0000003")
    train(recipe(keep=0), stop_at_step=4, resume=Resume(step="3"))
    assert "step_0000003 was fetched from moody://bucket/run" in capfd.readouterr().err
    assert whole(store) == ["step_0000003", "step_0000004"] and contents(store, "aside-step_0000006") == before
    with pytest.raises(ValueError, match=r"--resume-from moody://bucket/run/step_0000006: there is no such whole step; it has step_00000"):
        train(recipe("new"), resume=Resume(step="moody://bucket/run/step_0000006"))
    with pytest.raises(ValueError, match="checkpoint.resume is false, but moody://bucket/run holds step_0000004"):
        train(recipe("new", resume=False))
    train(recipe(keep=1), stop_at_step=7)  # past the numbers that were set aside
    assert whole(store) == ["step_0000007"] and contents(store, "aside-step_0000006") == before


def test_newer_steps_of_a_store_that_did_not_answer_at_the_start_are_set_aside(recipe, store, tmp_path, monkeypatch, capfd):
    train(recipe(keep=0), stop_at_step=7)
    for name in ("step_0000006", "step_0000007"):  # as another host's: its numbers differ in the last digit
        shutil.rmtree(tmp_path / "run" / name)
        store.write(f"{name}/{atomic.CHECKSUMS}", store.read(f"{name}/{atomic.CHECKSUMS}") + b"\n")
    before = {name: contents(store, name) for name in ("step_0000006", "step_0000007")}
    plain = Moody.ls

    def refuse_at_first(*arguments: Any, **options: Any) -> Any:
        if not (tmp_path / "run" / "step_0000007" / atomic.CHECKSUMS).is_file():
            raise OSError("no route")
        return plain(*arguments, **options)

    monkeypatch.setattr(Moody, "ls", refuse_at_first)
    train(recipe(keep=0), stop_at_step=7)
    assert "the store does not say whether it has a newer step" in capfd.readouterr().err
    assert whole(store) == ["step_0000003", "step_0000006", "step_0000007"]
    assert {name: contents(store, f"aside-{name}") for name in before} == before


def test_a_store_that_cannot_be_asked_does_not_let_a_run_begin_anew(recipe, store, tmp_path, monkeypatch, capfd):
    train(recipe(), stop_at_step=3)

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise PermissionError("AccessDenied")

    monkeypatch.setattr(Moody, "ls", refuse)
    train(recipe(), stop_at_step=4)  # its own folder has a step
    assert "the store does not say whether it has a newer step: moody://bucket/run: access is refused" in capfd.readouterr().err
    with pytest.raises(ValueError, match=r"access is refused \(AccessDenied\); set the store's credentials .* does not begin anew"):
        train(recipe("new"))

    def no_bucket(*arguments: Any, **options: Any) -> Any:
        raise FileNotFoundError("The specified bucket does not exist")  # s3fs's words

    monkeypatch.setattr(Moody, "ls", no_bucket)
    with pytest.raises(ValueError, match="moody://bucket/run: there is no such bucket; make it, or correct the address"):
        train(recipe("new"))


def test_a_step_that_is_written_anew_while_it_is_sent_is_sent_anew(recipe, store, tmp_path, capfd):
    """Its files may be partly those of before. All phases are gone through by hand here."""
    train(recipe(store=""), stop_at_step=3)
    folder = tmp_path / "run" / "step_0000003"
    uploads = uploading.Uploads(recipe().checkpoint, print)

    def settle() -> None:
        while uploads._work is not None and not uploads._work.done():
            pass

    uploads.advance()
    settle()
    uploads.advance()  # the files go
    settle()
    sums = json.loads((folder / atomic.CHECKSUMS).read_text())
    (folder / "state.json").write_text("{}")
    (folder / atomic.CHECKSUMS).write_text(json.dumps({**sums, "xxh128": {**sums["xxh128"], "state.json": "0"}}))
    uploads.add(folder)
    uploads.finish()
    assert store.read("step_0000003/state.json") == b"{}"
    assert store.read(f"step_0000003/{atomic.CHECKSUMS}") == (folder / atomic.CHECKSUMS).read_bytes()


def test_settings_that_do_not_fit(recipe, monkeypatch):
    with pytest.raises(ValueError, match="checkpoint.store=runs/a is no address; expected one such as s3://bucket/runs/a"):
        train(recipe(store="runs/a"))
    with pytest.raises(ValueError, match="checkpoint.store=://x is no address"):
        train(recipe(store="://x"))
    with pytest.raises(ValueError, match="checkpoint.directory=s3://b/a is an address; set checkpoint.store to it"):
        train(recipe(directory="s3://b/a"))
    with pytest.raises(ValueError, match="checkpoint.keep_unsent=true without checkpoint.store"):
        train(recipe(store="", keep_unsent=True))
    with pytest.raises(ValueError, match="fsspec knows no scheme 'nowhere'"):
        train(recipe(store="nowhere://b/a"))
    plain = builtins.__import__

    def without_fsspec(name: str, *arguments: Any) -> Any:
        if name == "fsspec":
            raise ModuleNotFoundError("No module named 'fsspec'", name="fsspec")
        return plain(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_fsspec)
    with pytest.raises(ValueError, match=r"moody://bucket/run needs the package fsspec; pip install 'mindspeed_vita\[stores\]'"):
        train(recipe())
