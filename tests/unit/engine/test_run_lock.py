"""The ranks watch each other before the first one takes the lock: one that dies meanwhile must not leave the others waiting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mindspeed_vita.checkpoint.folder_lock import FolderLock
from mindspeed_vita.engine import loop
from tests.tiny_data import TinyData


def test_the_lock_is_taken_while_the_ranks_watch_each_other(tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    watched, acquire, release = loop.watched, FolderLock.acquire, FolderLock.release

    @contextmanager
    def watches(*arguments: Any, **named: Any) -> Iterator[Any]:
        seen.append("watched")
        with watched(*arguments, **named) as steps:
            yield steps
        seen.append("not watched")

    def takes(lock: FolderLock) -> None:
        seen.append("taken")
        acquire(lock)

    def gives(lock: FolderLock) -> None:
        seen.append("given back")
        release(lock)

    monkeypatch.setattr(loop, "watched", watches)
    monkeypatch.setattr(FolderLock, "acquire", takes)
    monkeypatch.setattr(FolderLock, "release", gives)
    loop.train(tiny.recipe(tmp_path, train={"steps": 1}))
    assert seen == ["watched", "taken", "given back", "not watched"]
