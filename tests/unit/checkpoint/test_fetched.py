"""Checkpoints by address: fetched into the cache of this host, whole and checked, or refused in one message."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from fsspec.implementations.memory import MemoryFileSystem

from mindspeed_vita.addresses import is_address
from mindspeed_vita.checkpoint.fetched import local_copy
from mindspeed_vita.checkpoint.gates import Gate, check_handover, write_gate
from mindspeed_vita.checkpoint.native import atomic, ranks
from mindspeed_vita.cli import main as cli
from mindspeed_vita.engine import chosen_step
from mindspeed_vita.engine.chosen_step import choose_step
from mindspeed_vita.engine.loop import train
from mindspeed_vita.files import store_cache
from mindspeed_vita.files.store_cache import StoreCache
from mindspeed_vita.files.stores import NotThere, Store, StoreError, scheme_and_path
from tests.tiny_data import make_tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Steps 1 and 2 of a run."""
    directory, tiny = tmp_path_factory.mktemp("run"), make_tiny(tmp_path_factory.mktemp("data"))
    train(tiny.recipe(directory, train={"steps": 2}, checkpoint={"save_every": 1}))
    return directory


@pytest.fixture
def store(run, tmp_path, monkeypatch) -> Iterator[Store]:
    """The run's files in a store in memory; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = Store("memory://bucket/runs/a")
    for path in run.rglob("*"):
        if path.is_file():
            store.send(path, path.relative_to(run).as_posix())
    yield store
    MemoryFileSystem.store.clear()


def test_a_run_a_step_and_an_export_become_folders_that_are_found_again(run, store, capsys, monkeypatch):
    newest = local_copy(store.address)
    assert newest.name == "step_0000002" and not atomic.verify(newest, atomic.recorded(newest))
    assert local_copy(store.at("step_0000001")).name == "step_0000001"
    assert choose_step(store.address) == newest and choose_step(run) == run / "step_0000002"
    store.write("export/config.json", b"{}")
    store.write("export/deep/a.txt", b"1")
    first = local_copy(store.at("export"))
    assert (first / "deep" / "a.txt").read_text() == "1"
    capsys.readouterr()
    monkeypatch.setattr(Store, "fetch", None)
    assert local_copy(store.address) == newest and local_copy(store.at("export")) == first
    assert not capsys.readouterr().err, "nothing is fetched twice"
    assert cli.main(["lineage", store.address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 2


def test_a_start_that_ended_leaves_what_it_fetched_and_a_store_that_stumbles_is_asked_again(store, monkeypatch):
    monkeypatch.setattr(store_cache, "_PAUSES", (0.0, 0.0))
    plain, asked, stumbles = Store.fetch, [], {"state.json": 2}

    def fetch(self: Store, name: str, target: Path) -> Any:
        asked.append(name)
        if stumbles.get(target.name, 0):
            stumbles[target.name] -= 1
            raise StoreError("slow down")
        return plain(self, name, target)

    monkeypatch.setattr(Store, "fetch", fetch)
    stumbles["rank_00000.safetensors"] = 99
    with pytest.raises(StoreError, match="slow down"):
        local_copy(store.address)
    (half,) = Path(os.environ["XDG_CACHE_HOME"]).rglob(".fetching-*")
    kept = {path.name for path in half.rglob("*") if path.is_file()}
    assert kept, "several are fetched at a time, so some came before the end"
    if "recipe.json" in kept:  # damaged on this disk meanwhile
        (half / "recipe.json").write_text("?")
    stumbles.clear()
    asked.clear()
    taken = local_copy(store.address)
    assert not atomic.verify(taken, atomic.recorded(taken)) and not half.exists()
    again = {Path(name).name for name in asked}
    assert "rank_00000.safetensors" in again and not again & (kept - {"recipe.json", "rank_00000.safetensors"})


def test_what_one_host_meets_ends_all_and_hosts_wait_on_the_store(store, monkeypatch):
    """Two ranks as threads: collectives are replaced, the wait is the real one."""
    group, values, both = dist.HashStore(), {}, threading.Barrier(2)
    here = threading.local()

    def gathered(value: Any) -> list[Any]:
        values[here.rank] = value
        both.wait()
        found = [values[0], values[1]]
        both.wait()
        return found

    def copied(address: str) -> Path:
        if here.rank:
            raise OSError(errno.ENOSPC, "No space left on device")
        return Path("folder")

    def run(rank: int) -> str:
        here.rank = rank
        with pytest.raises(ValueError) as caught:
            chosen_step._on_every_host(store.address)
        return str(caught.value)

    monkeypatch.setattr(ranks, "world", lambda: 2)
    monkeypatch.setattr(ranks, "rank", lambda: here.rank)
    monkeypatch.setattr(ranks, "gather", gathered)
    monkeypatch.setattr(ranks.dist.distributed_c10d, "_get_default_store", lambda: group)
    monkeypatch.setattr(chosen_step, "local_copy", copied)
    with ThreadPoolExecutor(2) as threads:
        told = list(threads.map(run, (0, 1)))
    assert told[0] == told[1] and "cannot be fetched on" in told[0] and "No space left on device" in told[0]
    here.rank = 0
    monkeypatch.setattr(ranks, "_PATIENCE", timedelta(seconds=0.2))
    with pytest.raises(dist.DistStoreError):
        ranks.gather_patiently("the other is not there yet")


def test_an_export_that_changed_is_another_folder(store):
    store.write("export/config.json", b"{}")
    before = local_copy(store.at("export"))
    store.write("export/config.json", b'{"a": 1}')
    assert local_copy(store.at("export")) != before


def test_what_is_no_whole_checkpoint_is_refused_with_its_place(store, capsys):
    store.write("step_0000002/state.json", b"{}")
    with pytest.raises(atomic.DamagedCheckpoint, match="memory://bucket/runs/a/step_0000002 is damaged: state.json does not match"):
        local_copy(store.address)
    store.remove("step_0000002/state.json")
    with pytest.raises(atomic.DamagedCheckpoint, match="step_0000002 is damaged: state.json missing"):
        local_copy(store.address)
    for number in (1, 2):
        store.remove(f"step_000000{number}/{atomic.CHECKSUMS}")
    with pytest.raises(ValueError, match=r"its steps are not whole \(step_0000001, step_0000002\)"):
        local_copy(store.address)
    with pytest.raises(ValueError, match="memory://bucket/nothing is no checkpoint: found nothing"):
        local_copy("memory://bucket/nothing")
    assert cli.main(["checkpoint", "list", store.address]) == 2
    assert "vita checkpoint works on folders" in capsys.readouterr().err


def test_addresses_are_told_from_paths():
    assert is_address("s3://b/a") and not any(map(is_address, ("runs/a", "/runs/a", "s3:/b", "://b", "", Path("s3://b/a"))))
    assert scheme_and_path("S3://b/a/") == ("s3", "b/a")
    reasons = {
        "zip::s3://b/a": "chains",
        "s3://b/../c": r"a part '\.\.'",
        "s3:///": "no bucket",
        "s3://": "no bucket",
        "runs/a": "scheme://",
    }
    for wrong, reason in reasons.items():
        with pytest.raises(ValueError, match=rf"is no address of a store \(.*{reason}.*\); expected scheme://bucket/folder"):
            scheme_and_path(wrong)


def test_faults_of_a_store_name_the_place(store, tmp_path, monkeypatch):
    with pytest.raises(NotThere, match="memory://bucket/runs/a/nowhere: nothing is there"):
        store.read("nowhere")
    with pytest.raises(FileNotFoundError):
        store.send(tmp_path / "nowhere", "x")
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *arguments, **options: (_ for _ in ()).throw(TimeoutError("too slow")))
    with pytest.raises(StoreError, match=r"state.json: reading it failed \(TimeoutError: too slow\); check the network"):
        store.read("step_0000001/state.json")
    plain = MemoryFileSystem.get_file

    def changes(system: MemoryFileSystem, path: str, target: str, **options: object) -> None:
        plain(system, path, target, **options)
        system.pipe_file(path, b"longer than before")

    monkeypatch.setattr(MemoryFileSystem, "get_file", changes)
    with pytest.raises(StoreError, match="state.json changed while it was fetched"):
        store.fetch("step_0000001/state.json", tmp_path / "state.json")
    assert not list(tmp_path.glob("state.json*"))


def test_faults_of_this_hosts_disk_are_not_the_stores(store, tmp_path, monkeypatch):
    """They were "no such object", which left a sample out, or "set the store's credentials"."""
    plain = MemoryFileSystem.get_file

    def gone(system: MemoryFileSystem, path: str, target: str, **options: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", target)

    def denied(system: MemoryFileSystem, path: str, target: str, **options: object) -> None:
        raise PermissionError(13, "Permission denied", target)

    for fault, kind in ((gone, FileNotFoundError), (denied, PermissionError)):
        monkeypatch.setattr(MemoryFileSystem, "get_file", fault)
        with pytest.raises(kind, match="metrics.jsonl"):
            store.fetch("metrics.jsonl", tmp_path / "metrics.jsonl")
    cache = StoreCache(str(tmp_path / "cache"), 10**9)
    with pytest.raises(PermissionError):
        cache.media(cache.media_folder(store.address), ["metrics.jsonl"])
    monkeypatch.setattr(MemoryFileSystem, "get_file", plain)
    monkeypatch.setattr(MemoryFileSystem, "open", lambda *arguments, **options: (_ for _ in ()).throw(FileNotFoundError("metrics.jsonl")))
    with pytest.raises(NotThere):
        store.fetch("metrics.jsonl", tmp_path / "metrics.jsonl")


def test_a_scheme_whose_package_is_missing_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ValueError, match=r"s3://b/a: Install s3fs to access S3; pip install 'mindspeed_vita\[stores\]'"):
        Store("s3://b/a")


@pytest.mark.parametrize("name", ["//etc/passwd", "/../../x", "/./x", "/a//b", "/a\0b", "/..", "/weights/../../x"])
def test_an_object_whose_name_leads_out_of_its_folder_is_refused(store, tmp_path, monkeypatch, name):
    """S3 allows such keys. What fsspec lists is changed here, as its store in memory tidies names."""
    outside = "memory://bucket/runs/a/step_0000002"
    for listing in ("find", "glob", "ls"):
        plain = getattr(MemoryFileSystem, listing)

        def listed(self: MemoryFileSystem, path: str, plain: Any = plain, **options: Any) -> Any:
            found = plain(self, path, **options)
            if not path.rstrip("*").rstrip("/").endswith("step_0000002"):
                return found
            key = f"/bucket/runs/a/step_0000002{name}"
            return {**found, key: {"type": "file", "size": 1}} if isinstance(found, dict) else [*found, key]

        monkeypatch.setattr(MemoryFileSystem, listing, listed)
    step = Store(outside)
    for ask in (step.files, lambda: step.matching("*"), step.children, lambda: local_copy(outside)):
        with pytest.raises(ValueError, match="step_0000002 names .*which could lead out of its folder; rename or remove"):
            ask()
    assert not list((tmp_path / "cache").rglob("passwd"))


def test_files_of_a_step_without_a_checksum_are_not_taken(store):
    for name in ("config.json", "modeling.py", "weights/rank_00001.safetensors"):
        store.write(f"step_0000002/{name}", b"{}")
    taken = local_copy(store.at("step_0000002"))
    files = {path.relative_to(taken).as_posix() for path in taken.rglob("*") if path.is_file()}
    assert files == {atomic.CHECKSUMS, *atomic.recorded(taken)}


def test_a_gate_of_a_stored_step_holds_its_fetched_copy_back_also_when_it_comes_late(store, tmp_path):
    fetched = local_copy(store.at("step_0000002"))
    check_handover(fetched)
    gate = write_gate(tmp_path / "elsewhere" / "step_0000002", Gate(name="needle", measured=0.1, bound=0.9, better="higher"))
    store.send(gate, f"gates/{gate.name}")
    with pytest.raises(ValueError, match="step_0000002 is held back: gate needle"):
        check_handover(local_copy(store.at("step_0000002")))
    store.remove(f"gates/{gate.name}")
    check_handover(local_copy(store.at("step_0000002")))


def test_a_gate_that_was_measured_on_the_copy_counts_next_to_the_stores(store, tmp_path):
    passed = write_gate(tmp_path / "elsewhere" / "step_0000002", Gate(name="needle", measured=1.0, bound=0.9, better="higher"))
    store.send(passed, f"gates/{passed.name}")
    write_gate(local_copy(store.at("step_0000002")), Gate(name="needle", measured=0.1, bound=0.9, better="higher"))
    with pytest.raises(ValueError, match="step_0000002 is held back: gate needle: measured 0.1"):
        check_handover(local_copy(store.at("step_0000002")))


def test_a_step_under_another_name_is_refused(store):
    store.copy("step_0000001/checksums.json", "aside-step_0000001/checksums.json")
    with pytest.raises(ValueError, match="aside-step_0000001 is a step under another name; expected step_N"):
        local_copy(store.at("aside-step_0000001"))
