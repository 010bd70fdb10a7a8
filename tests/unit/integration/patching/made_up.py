"""A small made-up upstream, written as files, and entries of a ledger over it. Fixtures: the made-up packages, and the real ones."""

from __future__ import annotations

import importlib
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mindspeed_vita.integration.patching.ledger import Ledger, Patch, Upstream

MADE_UP = ("fakemega", "fakespeed", "fakeours")


def write(root: Path, files: dict[str, str]) -> None:
    """Writes dedented files, and an __init__.py into every folder that lacks one."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        for folder in path.relative_to(root).parents:
            initial = root / folder / "__init__.py"
            if folder != Path(".") and not initial.exists():
                initial.write_text("", encoding="utf-8")


def patch(**changes: Any) -> Patch:
    """A patch of fakemega.train.step, with changes."""
    values: dict[str, Any] = {
        "name": "step",
        "target": "fakemega.train.step",
        "replacement": "fakeours.step_wrapper",
        "kind": "wrap",
        "upstream": "fakemega",
        "versions": ("1.0",),
        "signature": "(model, count=1)",
        "why": "no seam",
        "until": "there is one",
        "test": "here",
    }
    return Patch(**{**values, **changes})


def ledger(*patches: Patch, folder: Path = Path("patches"), **more: Any) -> Ledger:
    """A ledger over the made-up packages."""
    upstreams = tuple(Upstream(project=name, package=name, version_file="setup.py") for name in ("fakemega", "fakespeed"))
    return Ledger(**{"folder": folder, "patches": patches, "seams": (), "upstreams": upstreams, **more})


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
