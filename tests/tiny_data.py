"""A tiny data set of pictures and text, recipes that train on it in seconds, and the fixtures `tiny` and `curve`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from PIL import Image

from mindspeed_vita.config import Recipe, recipe_from_dict
from mindspeed_vita.data.tiny_tokenizer import train_tokenizer

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 50, 210), "yellow": (220, 210, 40)}
VOCABULARY = 320


@dataclass(frozen=True)
class TinyData:
    """Paths of a data set, and recipes over it."""

    folder: Path

    @property
    def two_sources(self) -> str:
        """A mixture that has the pictures and the texts as two sources."""
        return str(self.folder / "two_sources.yaml")

    @property
    def held_out(self) -> str:
        """A mixture of two sources whose rows are not in the other mixtures."""
        return str(self.folder / "held_out.yaml")

    def recipe(self, directory: Path, **sections: Any) -> Recipe:
        """A recipe with small sizes; sections replace single keys: train={"steps": 3}."""
        content: dict[str, Any] = {
            "name": "tiny",
            "model": {
                "preset": "tiny",
                "vision": {"tile_size": 28, "patch_size": 7, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "ffn_hidden_size": 64},
                "projector": {"hidden_size": 32},
                "language": {
                    "num_layers": 2,
                    "hidden_size": 32,
                    "num_heads": 4,
                    "num_kv_heads": 2,
                    "ffn_hidden_size": 64,
                    "vocab_size": VOCABULARY,
                },
            },
            "data": {
                "mixture": str(self.folder / "mixture.yaml"),
                "tokenizer": str(self.folder / "tokenizer"),
                "seq_length": 128,
                "max_tiles": 2,
            },
            "train": {"steps": 20, "global_batch": 4, "lr": 1e-2, "min_lr": 1e-3, "warmup_fraction": 0.1, "precision": "fp32"},
            "checkpoint": {"directory": str(directory), "save_every": 1000},
            "logging": {"tensorboard": False},
        }
        for name, values in sections.items():
            content[name] = {**content.get(name, {}), **values}
        return recipe_from_dict(content)


def read_metrics(directory: Path, key: str = "loss") -> list[float]:
    """One column of a run's metrics.jsonl; steps without it are left out."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


@pytest.fixture
def curve() -> Callable[..., list[float]]:
    """Reads one column of a run's metrics."""
    return read_metrics


def _write_held_out(folder: Path) -> None:
    asked: dict[str, list[dict[str, Any]]] = {"seen": [], "counted": []}
    for number in range(12):
        colour = list(COLOURS)[number % 4]
        talk = [{"role": "user", "content": "<image>\nWhich is it?"}, {"role": "assistant", "content": f"It is {colour}."}]
        asked["seen"].append({"messages": talk, "images": [f"{colour}{number // 4}.png"]})
        down = " ".join(map(str, range(number, -1, -1)))
        asked["counted"].append({"messages": [{"role": "user", "content": f"From {number}."}, {"role": "assistant", "content": down}]})
    for name, rows in asked.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entries = {name: {"data_paths": [str(folder / f"{name}.jsonl")]} for name in asked}
    (folder / "held_out.yaml").write_text(json.dumps({"dataset": entries}))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    """The data set, made once."""
    return make_tiny(tmp_path_factory.mktemp("tiny_data"))


def make_tiny(folder: Path) -> TinyData:
    """The data set, made in an empty folder."""
    rows: list[dict[str, Any]] = []
    y, x = np.mgrid[0:40, 0:60]
    for number, (name, colour) in enumerate(COLOURS.items()):
        for copy in range(4):
            shade = ((x * (3 + number) + y * (2 + copy)) % 40 - 20)[..., None]
            Image.fromarray(np.clip(np.array(colour) + shade, 0, 255).astype(np.uint8)).save(folder / f"{name}{copy}.png")
            question, answer = {"role": "user", "content": "<image>\nColour?"}, {"role": "assistant", "content": f"It is {name}."}
            rows.append({"messages": [question, answer], "images": [f"{name}{copy}.png"]})
    for number in range(16):
        question = {"role": "user", "content": f"Count to {number}."}
        answer = {"role": "assistant", "content": " ".join(map(str, range(number + 1)))}
        rows.append({"messages": [question, answer]})
    pictures, text = rows[:16], rows[16:]
    for name, part in (("data", rows), ("pictures", pictures), ("text", text)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    for name, sources in (("mixture", {"all": "data"}), ("two_sources", {"pictures": "pictures", "text": "text"})):
        entries = {source: {"ratio": 1, "data_paths": [str(folder / f"{file}.jsonl")]} for source, file in sources.items()}
        (folder / f"{name}.yaml").write_text(json.dumps({"dataset": entries}))
    _write_held_out(folder)
    train_tokenizer([message["content"] for row in rows for message in row["messages"]], VOCABULARY, folder / "tokenizer")
    return TinyData(folder)
