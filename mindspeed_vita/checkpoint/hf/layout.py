"""What makes one kind of exported folder differ from another: names of its weights, its side files, and how its config.json is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch

from mindspeed_vita.config.recipe import ModelConfig, Recipe


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A kind of exported folder."""

    family: str
    """Names of the weights, see mapping/families.py; also the `layout` of verification.json."""
    files: frozenset[str]
    """All that an export writes, except for its shards and its card."""
    title: str
    """The layout in words, for the card."""
    usage: str
    """Python that loads a folder of this layout as FOLDER, for the card."""
    check: Callable[[Recipe], None]
    """Raises ValueError where the layout cannot hold a model."""
    write_side_files: Callable[[Path, Recipe, Any, torch.dtype, Optional[str]], None]
    """Writes everything but the weights: folder, recipe, tokenizer, stored type, and how frames are pooled (frame_pooling.py)."""
    read_model: Callable[[Mapping[str, Any]], ModelConfig]
    """Our settings for a config.json of this layout."""
