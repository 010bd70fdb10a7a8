"""examples/needle: its recipes load and train on its rows, and its script refuses what it cannot use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_vita.cli.main import main
from mindspeed_vita.config import load_recipe, validate

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "needle"


def test_the_second_stage_is_the_first_one_with_longer_haystacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITA_OUT", "out")
    short, long = (load_recipe(FOLDER / f"{name}.yaml") for name in ("short", "long"))
    for recipe in (short, long):
        validate(recipe)
    assert short.model == long.model and long.checkpoint.init_from == short.checkpoint.directory == "out/stage_short"
    assert (short.data.max_frames, long.data.max_frames) == (8, 64)
    frame = short.model.tokens_per_tile + 2
    assert 8 * frame + 40 < short.data.seq_length and 64 * frame + 40 < long.data.seq_length, "no row loses a frame"


def test_rows_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITA_OUT", str(tmp_path))
    rows = ["--lengths", "1,2", "--rows", "24", "--side", "56", "--tasks", "colour", "--wall", "black"]
    assert main(["eval", "needle", "--make-data", str(tmp_path / "short"), *rows]) == 0
    script = [sys.executable, str(FOLDER / "make_tokenizer.py"), "--rows", str(tmp_path / "short" / "rows.jsonl")]
    subprocess.run([*script, "--out", str(tmp_path / "tokenizer")], check=True, timeout=300)
    assert main(["train", str(FOLDER / "short.yaml"), "train.steps=1", "data.num_workers=0", "train.global_batch=1"]) == 0
    assert (tmp_path / "stage_short" / "step_0000001").is_dir()


@pytest.mark.parametrize(("arguments", "message"), [(["--fast"], "unknown argument --fast"), (["--out", "."], "is there already")])
def test_the_script_refuses_what_it_cannot_use(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = subprocess.run(["bash", str(FOLDER / "run.sh"), *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
