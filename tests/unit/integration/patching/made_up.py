"""A small made-up upstream, written as files, and entries of a ledger over it."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

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
