"""The quickstart's verdict: what the scores count, what passes, what fails, and that its tables can be read."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "tiny"
MODULES = ("evaluate", "report", "subjects")


@pytest.fixture(scope="module")
def example():
    sys.path.insert(0, str(EXAMPLE))
    try:
        import evaluate
        import report

        yield {"evaluate": evaluate, "report": report}
    finally:
        sys.path.remove(str(EXAMPLE))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as the engine leaves it: five stages of 30 steps whose loss falls."""
    for number in range(5):
        folder = tmp_path / f"stage{number}"
        step = folder / "step_0000030"
        step.mkdir(parents=True)
        recipe = {"train": {"global_batch": 2, "modules": ["projector"]}, "data": {"seq_length": 64, "resets": number < 3}}
        (step / "recipe.json").write_text(json.dumps(recipe))
        (step / "state.json").write_text(json.dumps({"layout": {"tp": 1, "pp": 1, "cp": 1, "dp": 2}, "failed_samples": []}))
        lines = [{"step": n, "loss": 2.0 / n, "seconds": 0.5, "memory": 1} for n in range(1, 31)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def result(right: float, what: float, follows: float = 0.9, answered: float = 1.0) -> dict:
    row = {"questions": 100, "right": right, "follows": follows, "blank": 0.4}
    table = {kind: dict(row) for kind in ("what", "colour", "animal", "person", "describe", "all")}
    table["what"]["right"] = what
    return {"table": table, "shown": [{"same": True}] * 6, "answered": answered, "clips": {"questions": 3, "right": 1.0}}


def test_scores_count_exact_answers_by_kind(example):
    items = [
        {"kind": "what", "answer": "A cat.", "swapped_answer": "A horse."},
        {"kind": "what", "answer": "A horse.", "swapped_answer": "A cat."},
        {"kind": "colour", "answer": "Red.", "swapped_answer": "Blue."},
    ]
    table = example["evaluate"].score(items, ["A cat.", "A cat.", "Red."], ["A horse.", "A cat.", "Red."], ["A cat.", "", ""])
    assert table["what"] == {"questions": 2, "right": 0.5, "follows": 1.0, "blank": 0.5}
    assert table["colour"]["follows"] == 0.0
    assert table["all"]["right"] == pytest.approx(2 / 3)
    assert table["animal"]["questions"] == 0


@pytest.mark.parametrize(
    "found, passes",
    [
        (result(0.90, 0.80), True),
        (result(0.84, 0.80), False),
        (result(0.90, 0.74), False),
        (result(0.90, 0.80, follows=0.84), False),
        (result(0.90, 0.80, answered=0.99), False),
    ],
)
def test_the_full_run_must_see(example, run: Path, found: dict, passes: bool):
    stages = [example["report"].read_stage(run / f"stage{n}", str(n)) for n in range(5)]
    assert example["report"].verdict(stages, found, smoke=False)[0] is passes


def test_the_smoke_run_needs_no_score_but_a_falling_loss(example, run: Path):
    report = example["report"]
    stages = [report.read_stage(run / f"stage{n}", str(n)) for n in range(5)]
    assert report.verdict(stages, result(0.0, 0.0), smoke=True)[0]
    lines = [{"step": n, "loss": 1.0, "seconds": 0.5, "memory": 1} for n in range(1, 31)]
    (run / "stage2" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stages[2] = report.read_stage(run / "stage2", "2")
    passed, reasons = report.verdict(stages, result(1.0, 1.0), smoke=True)
    assert not passed and reasons == "the loss falls in stages 0 and 2"


def test_a_pipeline_that_disagrees_with_the_batch_fails(example, run: Path):
    stages = [example["report"].read_stage(run / f"stage{n}", str(n)) for n in range(5)]
    found = result(0.95, 0.95)
    found["shown"] = [{"same": True}] * 4 + [{"same": False}] * 2
    assert not example["report"].verdict(stages, found, smoke=False)[0]


def test_a_stage_reads_back_what_the_engine_wrote(example, run: Path):
    stage = example["report"].read_stage(run / "stage3", "3 long")
    assert stage.first == pytest.approx(sum(2.0 / n for n in range(1, 11)) / 10)
    assert (stage.length, stage.resets, stage.layout) == (64, False, "tp 1 pp 1 cp 1 dp 2")
    assert stage.tokens_per_second == pytest.approx(2 * 64 / 0.5)
    header, *rows = example["report"].stage_table([stage])
    assert len(rows[0]) == len(header) and rows[0][-1].endswith("step_0000030")


def test_a_stage_without_a_checkpoint_is_named(example, tmp_path: Path):
    with pytest.raises(ValueError, match="stage2 holds no checkpoint"):
        example["report"].read_stage(tmp_path / "stage2", "2")


def test_the_loss_picture_is_a_picture(example, run: Path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    stages = [example["report"].read_stage(run / f"stage{n}", str(n)) for n in range(5)]
    example["report"].loss_picture(stages, run / "loss.png")
    with Image.open(run / "loss.png") as picture:
        assert picture.size[0] > 500


def test_the_report_ends_with_a_command_that_asks_about_a_picture_of_the_run(example):
    run = Path("my runs/tiny")
    text = example["report"].next_steps(run, run / "loss.png", {"shown": [{"image": "eval/coffee_080.jpg"}]})
    (line,) = [line for line in text.splitlines() if "vita generate" in line]
    words = shlex.split(line.removeprefix("next:"))
    assert words == ["vita", "generate", f"{run}/export", "--prompt", "What is it?", "--image", f"{run}/data/media/eval/coffee_080.jpg"]
    assert f"{run}/loss.png" in text and "tensorboard --logdir 'my runs/tiny'" in text and "docs/finetune.md" in text
