"""docs/finetune.md: its commands run as printed, on a start of one step; and its recipe for the released weights fits 8 devices."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mindspeed_vita.cli.main import main
from mindspeed_vita.config import load_recipe, validate
from mindspeed_vita.data.tiny_tokenizer import train_tokenizer

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "finetune.md").read_text(encoding="utf-8")
VARIABLES = ("PICTURES", "DATA", "OUT", "START", "TOKENIZER")


def commands() -> list[list[str]]:
    """Words of the page's numbered commands."""
    block = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)[0]
    return [shlex.split(line, comments=True) for line in block.splitlines()]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A folder like the repository after the quickstart: examples/ and a tokenizer; the device is the CPU."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    texts = ["Describe the picture.", "A red ball in front of a blue wall."] * 4
    train_tokenizer(texts, 400, tmp_path / "runs" / "tiny" / "data" / "tokenizer")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEVICE", "cpu")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_ten_commands_run_as_printed(home, capsys):
    words = commands()
    assert len(words) == 10 and words[0][:2] == ["bash", "scripts/quickstart.sh"] and words[1] == ["source", ".venv/bin/activate"]
    make, *rest = words[2:]
    done = subprocess.run([sys.executable, *make[1:]], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    kept = [path for path in (home / "runs/finetune/pictures").iterdir() if path.suffix == ".csv" or path.stem.endswith("_0")]
    for path in set((home / "runs/finetune/pictures").glob("*_on_*.png")) - set(kept):
        path.unlink()  # twenty pictures are enough here
    table = home / "runs/finetune/pictures/captions.csv"
    rows = [row for row in csv.reader(table.open()) if row[0] == "image" or row[0].endswith("_0.png")]
    csv.writer(table.open("w")).writerows(rows)
    for number, (program, *line) in enumerate(rest, start=4):
        assert program == "vita"
        if line[0] == "train":
            start = ["checkpoint.init_from=", "checkpoint.directory=runs/tiny/stage4", "train.steps=1", "data.seq_length=128"]
            assert main([*line, *start]) == 0  # stands for what the quickstart leaves
            line += ["train.steps=3", "data.seq_length=128"]
        assert main(line) == 0, f"command {number}: {capsys.readouterr().err}"
    run = home / "runs/finetune/run"
    assert {"pack0.html", "data_lengths.svg", "loss.svg", "metrics.jsonl"} <= {path.name for path in run.iterdir()}
    assert json.loads((home / "runs/finetune/export/config.json").read_text())["model_type"] == "long_vita"


def test_the_new_pictures_are_new_and_the_page_quotes_one_of_them(home):
    make = commands()[2]
    assert subprocess.run([sys.executable, *make[1:]], capture_output=True, timeout=120).returncode == 0
    folders = [home / "runs/finetune" / name for name in ("pictures", "new")]
    pixels = [{Image.open(path).tobytes() for path in folder.glob("*.png")} for folder in folders]
    assert len(pixels[0]) == 400 and len(pixels[1]) == 40 and not pixels[0] & pixels[1]
    generate = commands()[8]
    picture = Path(generate[generate.index("--image") + 1])
    captions = dict(csv.reader((folders[1] / "captions.csv").open()))
    assert f"prints `{captions[picture.name]}`" in PAGE


def test_the_recipe_for_released_weights_fits_the_devices_of_the_page(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, f"/nowhere/{name}")
    recipe = load_recipe(ROOT / "examples" / "finetune" / "long_vita_14b.yaml")
    validate(recipe, 8)
    assert recipe.data.mixture == "/nowhere/DATA/mixture.yaml" and recipe.checkpoint.init_from == "/nowhere/START"
    assert "vita check --processes 8 examples/finetune/long_vita_14b.yaml" in PAGE
