"""`vita eval needle`: bad input gets one message, the largest grid is counted without weights, and the exit status is a gate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mindspeed_vita.cli.main import main
from tests.tiny_checkpoint import make_tokenizer

MODEL = Path(__file__).resolve().parents[2] / "assets" / "needle_tiny"
NEEDLE = ["eval", "needle"]
LENGTHS = ["--lengths", "8,16"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*LENGTHS], "give a CHECKPOINT to ask, or --make-data DIR for rows that teach"),
        ([MODEL, *LENGTHS], "give either --output DIR, to ask, or --count, to see what that will cost"),
        ([MODEL, *LENGTHS, "--count", "--output", "x"], "give either --output DIR"),
        ([MODEL, "--lengths", "8,many", "--count"], "--lengths 8,many: expected numbers with commas between them"),
        ([MODEL, *LENGTHS, "--depths", "0,1.5", "--count"], "depth 1.5 lies outside 0 to 1; 0 is the first frame of a haystack"),
        ([MODEL, *LENGTHS, "--tasks", "taste", "--count"], "task 'taste' is unknown; expected some of colour, shape, nth, order"),
        ([MODEL, *LENGTHS, "--count", "--max-frames", "9"], "--max-frames follows from --lengths here; leave it out"),
        ([MODEL, *LENGTHS, "--count", "--rows", "9"], "only --make-data writes rows; leave out --rows"),
        ([MODEL, *LENGTHS, "--count", "--pass", "0.9"], "--count asks nothing; leave out --pass"),
        ([MODEL, *LENGTHS, "--output", "x", "--pass", "95"], "--pass is 95; expected a share of right answers, 0 to 1"),
        ([MODEL, *LENGTHS, "--output", "x", "--up-to", "8"], "--up-to 8 goes with --pass, and must reach the shortest length, 8"),
        ([MODEL, *LENGTHS, "--make-data", "x", "--pass", "0.9"], "--make-data writes rows and asks nothing; leave out CHECKPOINT, --pass"),
        ([MODEL, "--lengths", "8,4096", "--output", "x"], "the model has 8,192: take lengths up to 13"),
        (["nowhere", *LENGTHS, "--count"], "checkpoint nowhere: no such folder"),
    ],
)
def test_bad_input_gets_one_message(
    arguments: list[object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*NEEDLE, *map(str, arguments)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vita")]
    assert message in line and not list(tmp_path.iterdir())


def test_a_decoder_without_a_tower_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": 8}))
    assert main([*NEEDLE, str(tmp_path), *LENGTHS, "--count"]) == 2
    assert f"{tmp_path} is no Long-VITA folder: expected" in (said := capsys.readouterr().err) and "found 'qwen2'" in said


def test_the_grid_of_a_million_tokens_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tokenizer(tmp_path / "tokenizer")
    for name in ("DATA_ROOT", "OUTPUT_ROOT", "INIT_FROM"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("TOKENIZER", str(tmp_path / "tokenizer"))
    recipe = Path(__file__).resolve().parents[3] / "examples" / "long_vita_14b" / "stage4.yaml"
    options = ["--lengths", "4096", "--depths", "3", "--samples", "1", "--tasks", "colour"]
    assert main([*NEEDLE, str(recipe), *options, "--count"]) == 0
    _, line, _ = capsys.readouterr().out.splitlines()
    name, requests, frames, longest, tokens, computed = (int(cell.replace(",", "")) for cell in line.split()[:6])
    assert (name, requests, frames) == (4096, 3, 3 * 4096)
    assert 4096 * 258 < longest < 4096 * 258 + 200 and tokens == 3 * longest
    # the haystack once, its second half for the needle in the middle, and all of it for the needle at its beginning
    assert computed == pytest.approx(2.5 * longest, rel=1e-3)


def test_the_actions_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    assert "needle" in capsys.readouterr().out
