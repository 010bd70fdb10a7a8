"""Answers are kept by the weights that gave them: a newer step, a later iteration, or other weights in the same folder are others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.cli.main import main
from mindspeed_vita.inference.loading import find_model
from tests.tiny_checkpoint import make_tokenizer, random_weights, tiny_recipe


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_tokenizer(tmp_path / "tokenizer")
    native.save_full_weights(tmp_path / "run", random_weights(), tiny_recipe(tokenizer=str(tmp_path / "tokenizer")), step=5)
    return tmp_path / "run"


def newer(run: Path) -> None:
    """The run goes on to step 6, with other weights."""
    recipe = tiny_recipe(tokenizer=str(run.parent / "tokenizer"))
    native.save_full_weights(run, random_weights(seed=9), recipe, step=6)


def test_a_batch_is_not_continued_with_a_newer_step(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "questions.jsonl").write_text('{"prompt": "What?"}\n')
    command = ["generate", str(run), "--batch", str(tmp_path / "questions.jsonl"), "--output", str(tmp_path / "answers.jsonl")]
    assert main([*command, "--max-new-tokens", "2", "--cache-memory", "4MB"]) == 0
    assert main([*command, "--max-new-tokens", "2"]) == 0, "nothing is left, and the step is the same"
    newer(run)
    capsys.readouterr()
    assert main([*command, "--max-new-tokens", "2"]) == 2 and "made from another checkpoint" in capsys.readouterr().err


def test_every_format_tells_its_weights_apart(run: Path, tmp_path: Path) -> None:
    for to in ("hf", "mindspeed-llm"):
        assert main(["convert", "--from", str(run), "--to", to, "--output", str(tmp_path / to)]) == 0
    folders = (run, tmp_path / "hf", tmp_path / "mindspeed-llm")
    before = [find_model(folder).identity for folder in folders]
    assert [find_model(folder).identity for folder in folders] == before
    newer(run)
    (tmp_path / "hf").rename(tmp_path / "old")
    assert main(["convert", "--from", str(run), "--to", "hf", "--output", str(tmp_path / "hf")]) == 0  # in place of the other
    (tracker,) = (tmp_path / "mindspeed-llm").glob("latest*.txt")
    (first,) = (path for path in tracker.parent.iterdir() if path.is_dir())
    shutil.copytree(first, tracker.parent / "iter_0000009")  # times are kept: the iteration alone differs
    tracker.write_text("9")
    after = [find_model(folder).identity for folder in folders]
    assert all(one != other for one, other in zip(before, after)), json.dumps([before, after], indent=1)


def test_a_step_that_is_replaced_in_place_is_another_one(run: Path) -> None:
    before = find_model(run).identity
    shutil.rmtree(run)
    native.save_full_weights(run, random_weights(seed=9), tiny_recipe(), step=5)
    assert find_model(run).identity != before
