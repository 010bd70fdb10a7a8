"""A tiny export and media for choice files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mindspeed_vita.checkpoint.hf.export import export_hf
from mindspeed_vita.engine import session as processes
from tests.tiny_checkpoint import make_tokenizer, random_weights, tiny_recipe


def picture(seed: int, width: int = 40, height: int = 30) -> bytes:
    """A PNG of noise."""
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()


def film(folder: Path, frames: int, seed: int = 0) -> Path:
    """A folder of frames, which counts as a video of one frame a second."""
    folder.mkdir(parents=True)
    for number in range(frames):
        (folder / f"{number:05d}.png").write_bytes(picture(seed + number))
    return folder


@pytest.fixture(scope="package")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An export with weights drawn at random."""
    folder = tmp_path_factory.mktemp("choice")
    recipe = tiny_recipe(tokenizer=str(folder / "tokenizer"), max_frames=64)
    export_hf(random_weights(seed=3), recipe, folder / "tiny", tokenizer=make_tokenizer(folder / "tokenizer"))
    borrowed = torch.distributed.is_initialized()
    yield folder / "tiny"
    if not borrowed:
        processes.shutdown()
