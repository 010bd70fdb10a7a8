"""Fixtures: a made-up upstream that can be imported, and the real one where it is at hand."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.integration.patching.made_up import MADE_UP, write


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, str]], Path]]:
    """Writes modules of made-up packages and makes them importable; forgets them afterwards."""
    root = tmp_path / "made_up"
    root.mkdir()
    monkeypatch.syspath_prepend(str(root))

    def make(files: dict[str, str]) -> Path:
        write(root, files)
        importlib.invalidate_caches()
        return root

    yield make
    for name in [name for name in sys.modules if name.split(".")[0] in MADE_UP]:
        del sys.modules[name]


@pytest.fixture
def upstream_folder() -> Path:
    """The folder with Megatron-LM, MindSpeed and MindSpeed-LLM that VITA_UPSTREAM names."""
    folder = os.environ.get("VITA_UPSTREAM")
    if not folder:
        pytest.skip("VITA_UPSTREAM names no folder with Megatron-LM, MindSpeed and MindSpeed-LLM")
    return Path(folder)
