"""What tells an address of an object store (s3://bucket/folder) from a path. Nothing is asked here; files/stores.py opens them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Union

ADDRESS = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://(.*)", re.DOTALL)
"""The scheme, and what follows."""


def is_address(text: Union[str, Path]) -> bool:
    """Whether a text is meant as an address of a store, and no path: scheme://. What is wrong with one, files/stores.py says."""
    return isinstance(text, str) and ADDRESS.fullmatch(text) is not None


def run_folder(text: str) -> Path:
    """The folder of a run, for a command that reads its files where they are and fetches nothing.

    Raises:
        ValueError: it is an address of a store.
    """
    if is_address(text):
        raise ValueError(f"{text} is an address; the files of a run are read from its folder (checkpoint.directory of its recipe) only")
    return Path(text)
