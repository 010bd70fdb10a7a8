"""Samples, shards and media in an object store: the same packs as from folders, fetched once, within a bound; faults with their place."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mindspeed_vita.data.checking import check_mixture
from mindspeed_vita.data.media.paths import frames_reference
from mindspeed_vita.data.mixture import load_mixture
from mindspeed_vita.data.prepare import store_cache
from mindspeed_vita.files import store_cache as caches
from mindspeed_vita.files.store_cache import StoreCache
from mindspeed_vita.files.stores import Store, StoreError
from tests.unit.data.test_formats import conversation, hub_rows, png, write_parquet, write_shard


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An empty store in memory."""
    MemoryFileSystem.store.clear()
    monkeypatch.setattr(caches, "_PAUSES", (0.0, 0.0))
    yield Store("memory://bucket/set")
    MemoryFileSystem.store.clear()


def upload(store: Store, folder: Path) -> None:
    """Every file of a folder, under its name there."""
    for path in folder.rglob("*"):
        if path.is_file():
            store.send(path, path.relative_to(folder).as_posix())


def digest(data: Any) -> str:
    """Of tokens, labels and tiles of every pack of an epoch."""
    found = hashlib.sha256()
    for number in range(data.num_packs(0)):
        pack = data[number]
        assert not pack.failures
        for tensor in (pack.tokens_T, pack.labels_T, pack.weights_T, pack.cu_seqlens, pack.tiles_NCHW):
            found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


@pytest.fixture
def files(world, picture, clip, say, tmp_path) -> Path:
    """Rows with pictures and videos of every kind next to them, a tar shard and a Parquet file."""
    folder = tmp_path / "files"
    for name in ("rows/photos", "rows/frames", "shards", "hub"):
        (folder / name).mkdir(parents=True)
    for number in range(3):
        picture(60 + number, 30).save(folder / f"rows/photos/{number}.png")
        picture(28, 28 + number).save(folder / f"rows/frames/{number}.png")
    clip(folder / "rows/clip.mp4", 8, 4)
    media: list[dict[str, Any]] = [{"images": [f"photos/{number}.png"]} for number in range(3)]
    media += [{"videos": ["clip.mp4"]}, {"videos": ["frames"]}, {"videos": [[f"photos/{number}.png" for number in (2, 0)]]}, {}]
    tags = {"images": "<image>\n", "videos": "<video>\n"}
    rows = [{"messages": say("".join(tags[key] for key in row) + f"What {place}?", "A cat."), **row} for place, row in enumerate(media)]
    (folder / "rows/data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    members = [("a.json", json.dumps({"conversations": conversation("<image>What?", "A cat.")}).encode()), ("a.png", png(picture(60, 30)))]
    write_shard(folder / "shards/part-000.tar", members)
    write_shard(folder / "shards/part-001.tar", [("b.json", json.dumps({"messages": say("A?", "B.")}).encode())])
    write_parquet(folder / "hub/p.parquet", hub_rows(picture))
    return folder


def mixture(world, top: str) -> None:
    world.mixture(
        rows={"data_paths": [f"{top}/rows/data.jsonl"]},
        shards={"data_paths": [f"{top}/shards/part-{{000..001}}.tar"]},
        hub={"data_paths": [f"{top}/hub/*.parquet"]},
    )


def settings(tmp_path: Path, name: str, **more: Any) -> dict[str, Any]:
    return {"index": str(tmp_path / f"index_{name}"), "store_cache": str(tmp_path / "cache"), **more}


def test_packs_from_a_store_are_those_from_folders(world, store, files, tmp_path, monkeypatch):
    mixture(world, str(files))
    local = world.build(**settings(tmp_path, "local"), store_cache_bytes=1)
    upload(store, files)
    mixture(world, store.address)
    stored = world.build(**settings(tmp_path, "stored"))
    assert not local.skipped and not stored.skipped and stored.num_samples == local.num_samples == 13
    assert stored.fingerprint == local.fingerprint and digest(stored) == digest(local)
    checked = check_mixture(world.config(**settings(tmp_path, "stored")), headers=True)
    assert [problem for file in checked for problem in file.problems] == []
    cache = StoreCache(str(tmp_path / "cache"), 0)
    assert cache.file_address(stored._files[0].path) == store.at("rows/data.jsonl")
    # the store is asked for the files of samples, and for no medium again
    asked: list[str] = []
    plain = Store.fetch
    monkeypatch.setattr(Store, "fetch", lambda self, name, target: asked.append(name) or plain(self, name, target))
    assert digest(world.build(**settings(tmp_path, "stored"))) == digest(local) and not asked
    mixture(world, str(files))
    (files / "rows/data.jsonl").rename(files / "data.jsonl")
    world.mixture(rows={"data_paths": [str(files / "data.jsonl")]}, shards={"data_paths": [str(files / "shards")]}, hub={"num": 0})
    rooted = world.build(**settings(tmp_path, "rooted", media_root=store.at("rows")))
    assert not rooted.skipped and not any(pack.failures for pack in (rooted[number] for number in range(rooted.num_packs(0))))


def test_rows_may_hold_whole_addresses_below_the_root_and_nothing_else(world, store, picture, say):
    store.write("photos/a.png", png(picture(28, 28)))
    Store("memory://other").write("b.png", png(picture(28, 28)))
    outside = ["memory://other/b.png", "../../other/b.png", "/etc/passwd", "memory://bucket/set/../../other/b.png", "gone.png", "\ud800"]
    paths = [store.at("photos/a.png"), frames_reference([store.at("photos/a.png")]), *outside]
    rows = [{"messages": say(f"<image>{number}?", "Yes."), "images": [path]} for number, path in enumerate(paths) if number != 1]
    rows += [{"messages": say("<video>?", "Yes."), "videos": [[store.at("photos/a.png")]]}]
    asked: list[str] = []
    plain = Store.about
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "about", lambda self, name: asked.append(self.at(name)) or plain(self, name))
        data = world.build(rows, media_root=store.address, store_cache=str(world.folder / "cache"))
    assert data.num_samples == 2 and len(data.skipped) == len(outside)
    assert {address for address in asked if "other" in address} == set(), "no row makes another place be asked"
    reasons = " ".join(item.reason for item in data.skipped)
    assert "lies outside the media root" in reasons and "gone.png: no such object below memory://bucket/set" in reasons


def test_media_stay_within_their_bound_but_those_in_use(world, store, picture, say, tmp_path, monkeypatch):
    for number in range(6):
        store.write(f"{number}.png", os.urandom(1000))
    cache = StoreCache(str(tmp_path / "cache"), 3000)
    root = Path(cache.media_folder(store.address))

    def names() -> list[str]:
        return sorted(path.name for path in root.iterdir())

    assert cache.media(str(root), [f"{number}.png" for number in range(5)]) == dict.fromkeys(f"{number}.png" for number in range(5))
    assert len(names()) == 5, "all are in use"
    monkeypatch.setattr(caches, "IN_USE", 0.0)
    for number in range(5):
        os.utime(root / f"{number}.png", (1000 + number, 1000 + number))
    cache.media(str(root), ["0.png"])  # used again
    cache.media(str(root), ["5.png"])
    assert names() == ["0.png", "5.png"], "the longest unused went"
    assert cache.media(str(root), ["2.png", "nowhere.png"]) == {"2.png": None, "nowhere.png": "no such object below memory://bucket/set"}


def test_processes_of_a_host_share_one_count_of_bytes(store, tmp_path, monkeypatch):
    """Each had an allowance of its own, so 32 loaders went far beyond the bound. Processes are told apart by their number only."""
    monkeypatch.setattr(caches, "IN_USE", 0.0)
    bound, size = 100_000, 1000
    root = Path(StoreCache(str(tmp_path / "cache"), bound).media_folder(store.address))
    most = 0
    for number in range(160):
        store.write(f"{number}.png", os.urandom(size))
        process = os.getpid() if number % 32 == 0 else 10**7 + number % 32
        monkeypatch.setattr(caches.os, "getpid", lambda process=process: process)
        StoreCache(str(tmp_path / "cache"), bound).media(str(root), [f"{number}.png"])
        os.utime(root / f"{number}.png", (1000 + number, 1000 + number))
        most = max(most, sum(path.stat().st_size for path in root.iterdir()))
    assert bound * 0.8 < most <= bound * 1.05
    usage = caches.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(caches.shutil, "disk_usage", lambda folder: usage._replace(free=size - 1))
    store.write("last.png", os.urandom(size))
    with pytest.raises(StoreError, match="GB free, a medium needs"):
        StoreCache(str(tmp_path / "cache"), bound).media(str(root), ["last.png"])


def test_a_store_that_fails_ends_the_run_with_its_place_and_masks_nothing(world, store, picture, say, monkeypatch):
    store.write("a.png", png(picture(28, 28)))
    rows = [{"messages": say("<image>?", "Yes."), "images": ["a.png"]}]
    told = {"media_root": store.address, "store_cache": str(world.folder / "cache")}
    plain, failures = MemoryFileSystem.info, [3]

    def fails(self: MemoryFileSystem, path: str, **options: Any) -> Any:
        if path.endswith("a.png") and failures[0]:
            failures[0] -= 1
            raise TimeoutError("too slow")
        return plain(self, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "info", fails)
    with pytest.raises(StoreError, match=r"memory://bucket/set/a.png: asking about it failed \(TimeoutError: too slow\)"):
        world.build(rows, **told)
    failures[0] = 2
    assert not world.build(rows, **told).skipped, "it is asked again"


def test_faults_of_a_mixture_name_the_place(world, store, say, tmp_path, monkeypatch):
    store.write("data.jsonl", (json.dumps({"messages": say("A?", "B.")}) + "\n").encode())
    told = settings(tmp_path, "x")
    for entry, message in (
        (store.at("nowhere.jsonl"), "found no file for only: memory://bucket/set/nowhere.jsonl"),
        (store.at("*.tar"), r"found no file for only: memory://bucket/set/\*.tar"),
        ("nowhere://b/a.jsonl", "fsspec knows no scheme 'nowhere'"),
    ):
        world.mixture(only={"data_paths": [entry]})
        with pytest.raises(ValueError, match=message):
            world.build(**told)
    world.mixture(only={"data_paths": [store.at("data.jsonl")]})
    with pytest.raises(ValueError, match="which is not read here"):
        load_mixture(world.folder / "mixture.yaml")
    with pytest.raises(ValueError, match="data.media_root='memory://bucket/nowhere': nothing is there"):
        world.build(**told, media_root="memory://bucket/nowhere")
    first = world.build(**told)
    plain = Store.about

    def renewed(self: Store, name: str) -> Any:
        found = plain(self, name)
        if name == "data.jsonl" and len(calls) < 1:
            calls.append(name)
            store.write("data.jsonl", b"other")
        return found

    calls: list[str] = []
    store.write("data.jsonl", (json.dumps({"messages": say("A and more?", "B.")}) + "\n").encode())
    assert world.build(**told).fingerprint != first.fingerprint, "a changed object is fetched and indexed anew"
    monkeypatch.setattr(Store, "about", renewed)
    store.write("data.jsonl", (json.dumps({"messages": say("And now?", "B.")}) + "\n").encode())
    with pytest.raises(ValueError, match="dataset.only.data_paths: memory://bucket/set/data.jsonl changed while the run was starting"):
        world.build(**told)


def test_a_folder_of_a_store_stands_for_its_data_files(world, store, say, tmp_path):
    for number in (10, 2):
        store.write(f"part-{number}.jsonl", (json.dumps({"messages": say(f"{number}?", "B.")}) + "\n").encode())
    for other in ("readme.md", ".hidden.jsonl", "vita_index/x.jsonl", "deep/part-1.jsonl"):
        store.write(other, (json.dumps({"messages": say("C?", "B.")}) + "\n").encode())
    world.mixture(only={"data_paths": [store.address]})
    (source,) = load_mixture(world.folder / "mixture.yaml", store_cache(world.config(**settings(tmp_path, "x"))))
    assert [Path(path).name for path in source.paths] == ["part-1.jsonl", "part-2.jsonl", "part-10.jsonl"]
    assert all(path.startswith(str(tmp_path / "cache/files/memory/bucket/set/")) for path in source.paths)
