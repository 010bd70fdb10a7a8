"""One tiny export for the tests of hf/, and pictures to show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mindspeed_vita.checkpoint.hf.export import export_hf
from tests.tiny_checkpoint import make_tokenizer, random_weights, tiny_recipe


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A folder as `vita convert --to hf` writes it: tiles of 28 pixels, 4 tokens each."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("exported") / "tiny"
    export_hf(random_weights(), tiny_recipe(), folder, tokenizer=AutoTokenizer.from_pretrained(tokenizer_folder), max_shard_bytes=90_000)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """"wide" (2x1 grid and thumbnail), "square" (one tile), their files, a folder of frames and a clip."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    wide = Image.fromarray(draw.integers(0, 256, (40, 80, 3), dtype=np.uint8))
    square = Image.fromarray(draw.integers(0, 256, (20, 20, 3), dtype=np.uint8))
    wide.save(folder / "wide.png")
    square.save(folder / "square.png")
    (folder / "frames").mkdir()
    for number in range(3):
        Image.fromarray(draw.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / "frames" / f"{number}.png")
    _clip(folder / "clip.mp4", draw)
    return {
        "wide": wide, "square": square, "wide_file": str(folder / "wide.png"), "square_file": str(folder / "square.png"),
        "frames": str(folder / "frames"), "clip": str(folder / "clip.mp4"),
    }  # fmt: skip


def _clip(path: Path, draw: np.random.Generator) -> None:
    """30 frames at 10 per second: 3 of them are taken at 1 per second."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for _ in range(30):
            frame = av.VideoFrame.from_ndarray(draw.integers(0, 256, (32, 48, 3), dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
