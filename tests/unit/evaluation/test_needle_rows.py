"""Rows that teach needle tests: the project's format, frames that are there, answers that the test would take as right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from mindspeed_vita.data.sample import parse_sample
from mindspeed_vita.evaluation.needle_cases import TASKS
from mindspeed_vita.evaluation.needle_frames import COLOURS
from mindspeed_vita.evaluation.needle_grid import Grid
from mindspeed_vita.evaluation.needle_rows import RowSettings, write_rows

GRID = Grid(lengths=(3, 9), depths=(0.0,), tasks=tuple(TASKS))


@pytest.mark.parametrize("media", ["video", "pictures"])
def test_rows_are_samples_with_their_frames(tmp_path: Path, media: str) -> None:
    grid = Grid(**{**GRID.settings(), "media": media})
    frames = write_rows(tmp_path / "rows", grid, RowSettings(rows=40, side=16, pool=2))
    rows = [json.loads(line) for line in (tmp_path / "rows" / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 40 and len(list((tmp_path / "rows" / "frames").iterdir())) == frames
    mixture = yaml.safe_load((tmp_path / "rows" / "mixture.yaml").read_text())
    assert mixture["dataset"]["needles"]["data_paths"] == ["rows.jsonl"]
    lengths = set()
    for row in rows:
        sample = parse_sample(row, "rows.jsonl")
        files = row["images"] if media == "pictures" else row["videos"][0]
        lengths.add(len(files))
        tag, tags = ("<image>", len(files)) if media == "pictures" else ("<video>", 1)
        assert sample.messages[0].content.count(tag) == tags
        for file in files:
            with Image.open(tmp_path / "rows" / file) as picture:
                assert picture.size == (16, 16)
    assert lengths == {3, 9}
    answers = {row["messages"][1]["content"] for row in rows}
    assert any(answer.strip(".").lower() in COLOURS for answer in answers) and any("," in answer for answer in answers)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_rows(tmp_path / name, Grid(**{**GRID.settings(), "seed": seed}), RowSettings(rows=5, side=8))
        found.append((tmp_path / name / "rows.jsonl").read_text())
    assert found[0] == found[1] != found[2]


def test_written_answers_are_right_ones() -> None:
    for case in Grid(**{**GRID.settings(), "samples": 20}).cases():
        assert case.is_right(TASKS[case.task].written(case.expected))


def test_a_folder_that_is_there_and_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is there already; choose another folder"):
        write_rows(tmp_path, GRID, RowSettings(rows=1, side=8))
    with pytest.raises(ValueError, match="rows=0, side=8"):
        write_rows(tmp_path / "new", GRID, RowSettings(rows=0, side=8))
    assert not (tmp_path / "new").exists()
