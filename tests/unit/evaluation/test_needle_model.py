"""The stored tiny model, which examples/needle/run.sh trained: it finds needles, is at chance where they are blanked, and gates."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from mindspeed_vita.checkpoint.gates import check_handover
from mindspeed_vita.cli.main import main
from mindspeed_vita.engine import session as processes
from mindspeed_vita.evaluation.needle_count import ANSWER_TOKENS
from mindspeed_vita.evaluation.needle_grid import Grid
from mindspeed_vita.evaluation.needle_media import NeedleMedia
from mindspeed_vita.inference.answer import answer_all
from mindspeed_vita.inference.request_loop import RequestLoop
from mindspeed_vita.inference.sampling import SamplingParams
from mindspeed_vita.inference.session import SessionSettings, load_session

MODEL = Path(__file__).resolve().parents[2] / "assets" / "needle_tiny"
NEEDLES = ["--tasks", "colour", "--wall", "black", "--distractor-every", "4"]
GRID = ["--lengths", "48", "--depths", "3", "--samples", "8", *NEEDLES]


def test_the_model_is_small() -> None:
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 5e6


def test_one_length_at_three_depths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["eval", "needle", str(MODEL), *GRID, "--control", "--output", str(tmp_path), "--cache-memory", "32MB"]
    assert main([*ask, "--pass", "0.95", "--up-to", "48"]) == 0
    content = json.loads((tmp_path / "needle.json").read_text())
    shares = {blank: [cell["right"] / cell["asked"] for cell in content["cells"] if cell["blank"] is blank] for blank in (False, True)}
    assert min(shares[False]) >= 0.95
    # 24 guesses at one in six: 13 right ones or more come once in ten thousand times
    assert sum(shares[True]) * 8 < 13
    assert {path.name for path in tmp_path.iterdir()} == {"answers.jsonl", "needle.json", "needle.svg", "needle.png"}
    printed = capsys.readouterr().out
    assert "gate needle: measured 1, passes with at least 0.95: passed; the export belongs to no run" in printed and "blanked" in printed
    _a_second_call_asks_nothing(ask, tmp_path, capsys)


def _a_second_call_asks_nothing(ask: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It reads the answers, and they decide: with the control's in place of the needles', the gate fails."""
    path = folder / "answers.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for row in lines[1:]:
        row["right"] = row["blank"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([*ask, "--pass", "0.95"]) == 1
    output = capsys.readouterr()
    assert "loading" not in output.err
    assert "not passed: colour at 48 frames: 0 of 24 right, expected 95%" in output.out
    assert "not passed: colour with blanked needles: 24 of 24 right, chance is 16.7%; the answers leak" in output.out
    assert main([*ask, "--seed", "1"]) == 2
    assert "belongs to another test (seed was 0, is 1); choose another --output" in capsys.readouterr().err


def test_answers_are_those_of_requests_asked_alone(tmp_path: Path) -> None:
    """Over the prefix of another haystack and without it."""
    grid = Grid(lengths=(48, 64), depths=(0.5, 1.0), tasks=("colour",), samples=1, wall="black", distractor_every=4, control=True)
    cases = grid.cases()
    borrowed = torch.distributed.is_initialized()
    session = load_session(MODEL, settings=SessionSettings(cache_memory=1 << 25, block_size=32), max_frames=64)
    drawn = NeedleMedia(tmp_path / "media", session.loaded.recipe.model.vision.tile_size)
    requests = [(drawn.request(case, "video"), SamplingParams(max_tokens=ANSWER_TOKENS)) for case in cases]
    together = answer_all(RequestLoop(session), requests)
    alone = [answer_all(RequestLoop(session), [request])[0] for request in requests]
    if not borrowed:
        processes.shutdown()
    assert together == alone and len({answer.text for answer in alone}) > 1
    assert not any(answer.cached_tokens for answer in alone)
    assert sum(answer.cached_tokens for answer in together) > math.prod((4, 32))
    assert all(case.is_right(answer.text) for case, answer in zip(cases, alone) if not case.blank)
    shutil.rmtree(drawn.folder)


def test_a_run_that_finds_too_few_needles_is_held_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["convert", "--from", str(MODEL), "--to", "native", "--output", str(run)]) == 0
    ask = ["eval", "needle", str(run), "--lengths", "4", "--depths", "1", "--samples", "2", *NEEDLES, "--output", str(tmp_path / "out")]
    assert main([*ask, "--cache-memory", "32MB", "--pass", "0.95"]) == 0
    path = run / "gates" / "needle.step_0000000.json"
    assert json.loads(path.read_text())["held"] is False
    answers = tmp_path / "out" / "answers.jsonl"
    answers.write_text(answers.read_text().replace('"right": true', '"right": false'))
    assert main([*ask, "--pass", "0.95"]) == 1
    assert f"gate needle: measured 0, passes with at least 0.95: HELD BACK ({path})" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is held back: gate needle"):
        check_handover(run)
