"""A small tokenizer, pictures, clips and data sets on disk, shared by the data tests."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindspeed_vita.config.recipe import DataConfig
from mindspeed_vita.data.dataset import build_data
from mindspeed_vita.data.tiny_tokenizer import train_tokenizer
from mindspeed_vita.data.tokenizer import load_tokenizer

TEXTS = ["What is in the picture? It's a cat and 12 dogs.\n\nYes.\n", "Describe the clip. A red car drives by, then stops.\n"] * 8


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 400, folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    return load_tokenizer(tokenizer_folder)


def draw_picture(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    channels = [(3 * x + 5 * y) % 256, (x * y // 16) % 256, (x // 7 * 31 + y // 5 * 17) % 256]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def write_clip(path: Path, num_frames: int, fps: int, width: int = 64, height: int = 48) -> Path:
    """A clip whose frame i is grey level 4 * i: easy to tell apart after the codec."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 8_000_000
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 4 * number % 256, dtype=np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.fixture
def picture():
    return draw_picture


@pytest.fixture
def clip():
    return write_clip


def talk(*contents: str) -> list[dict[str, str]]:
    """Turns that start with the user."""
    return [{"role": "user" if place % 2 == 0 else "assistant", "content": content} for place, content in enumerate(contents)]


class World:
    """A folder with data, and build_data on it with tiny sizes: tiles of 28 pixels, 4 tokens each."""

    def __init__(self, folder: Path, tokenizer_folder: Path) -> None:
        self.folder = folder
        self.tokenizer_folder = tokenizer_folder

    def rows(self, name: str, rows: list) -> str:
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(self.folder / name)

    def mixture(self, **entries) -> str:
        path = self.folder / "mixture.yaml"
        path.write_text(json.dumps({"dataset": entries}))
        return str(path)

    def config(self, **settings) -> DataConfig:
        defaults = {"mixture": str(self.folder / "mixture.yaml"), "tokenizer": str(self.tokenizer_folder), "seq_length": 256}
        return DataConfig(**{**defaults, "max_frames": 8, **settings})

    def build(self, rows: list | None = None, **settings):
        if rows is not None:
            self.mixture(only={"ratio": 1, "data_paths": [self.rows("data.jsonl", rows)]})
        return build_data(self.config(**settings), tokens_per_tile=4, tile_size=28, vocab_size=512)


@pytest.fixture
def world(tmp_path, tokenizer_folder) -> World:
    return World(tmp_path, tokenizer_folder)


@pytest.fixture
def say():
    return talk
