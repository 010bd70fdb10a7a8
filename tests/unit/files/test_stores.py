"""What a store promises of a write, also where a folder of this host stands for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from mindspeed_vita.files.stores import Store


def test_a_small_object_is_whole_or_not_at_all_in_a_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"file://{tmp_path}")
    store.write("a/checksums.json", b"old")

    def killed(system: Any, target: str, content: bytes) -> None:
        Path(target).write_bytes(content[:1])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(LocalFileSystem, "pipe_file", killed)
        store.write("a/checksums.json", b"new")
    assert store.read("a/checksums.json") == b"old"
    store.write("a/checksums.json", b"new")
    assert store.read("a/checksums.json") == b"new" and list(store.files()) == ["a/checksums.json"]
