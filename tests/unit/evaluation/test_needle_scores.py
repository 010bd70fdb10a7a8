"""Scores of needle tests: cells, the table, and the gate, a control's chance included."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from mindspeed_vita.evaluation.heat_map import Panel, colour_of, write_heat_map
from mindspeed_vita.evaluation.needle_cases import TASKS
from mindspeed_vita.evaluation.needle_report import write_report
from mindspeed_vita.evaluation.needle_scores import Scores, by_chance

LENGTHS, DEPTHS = (8, 64), (0.0, 1.0)


def rows(wrong: int = 0, leaks: bool = False, haystacks: int = 10) -> list[dict[str, Any]]:
    """Answers about colours: so many wrong ones at 64 frames and depth 0; blanked ones right one time in six, or always."""
    found = []
    for length, depth, number, blank in itertools.product(LENGTHS, DEPTHS, range(haystacks), (False, True)):
        right = (leaks or number % 6 == 0) if blank else (length, depth) != (64, 0.0) or number >= wrong
        asked = {"task": "colour", "length": length, "depth": depth, "blank": blank, "haystack": f"haystack {number}"}
        found.append({**asked, "right": right, "prompt_tokens": 10 * length + number, "cached_tokens": 0})
    return found


def scores(content: list[dict[str, Any]], control: bool = True) -> Scores:
    return Scores(content, lengths=LENGTHS[::-1], depths=DEPTHS, tasks=["colour"], control=control)


def test_the_table_has_a_line_for_each_length() -> None:
    lines = scores(rows(wrong=3)).table().splitlines()
    assert lines[0] == "colour (chance 16.7%)"
    assert [line.split() for line in lines[1:]] == [
        ["frames", "tokens", "all", "depth", "0", "depth", "1", "blanked"],
        ["8", "89", "100%", "100%", "100%", "20%"],
        ["64", "649", "85%", "70%", "100%", "20%"],
    ]


def test_a_gate_looks_at_each_length_up_to_its_own() -> None:
    found = scores(rows(wrong=3))
    assert found.shortfalls(0.95, up_to=8) == [] and found.shortfalls(0.85, up_to=64) == []
    assert found.shortfalls(0.95, up_to=64) == ["colour at 64 frames: 17 of 20 right, expected 95%"]


def test_a_control_that_is_answered_fails_the_gate() -> None:
    assert scores(rows(leaks=True)).shortfalls(0.5, up_to=64) == [
        "colour with blanked needles: 40 of 40 right, chance is 16.7%; the answers leak"
    ]


def test_answers_of_one_haystack_at_several_lengths_are_one_guess() -> None:
    """Two lucky guesses of two, each at two lengths, are no leak: one time in 36."""
    content = rows(leaks=True, haystacks=1)
    assert scores(content).shortfalls(0.5, up_to=64) == []


def test_the_chance_of_guessing_is_the_binomial_tail() -> None:
    outcomes = list(itertools.product((True, False), repeat=6))
    for right in range(7):
        tail = sum(0.25 ** sum(hits) * 0.75 ** (6 - sum(hits)) for hits in outcomes if sum(hits) >= right)
        assert by_chance(right, 6, 0.25) == pytest.approx(tail)
    assert by_chance(0, 100000, 0.1) == pytest.approx(1) and by_chance(11000, 100000, 0.1) < 1e-9


def test_the_report_holds_cells_and_requests_and_draws_them(tmp_path: Path) -> None:
    path, svg, png = write_report(tmp_path, {"seed": 0}, scores(rows(wrong=3)), line_after=8)
    content = json.loads(path.read_text())
    assert content["settings"] == {"seed": 0} and len(content["requests"]) == 80
    assert {"task": "colour", "length": 64, "depth": 0.0, "blank": False, "right": 7, "asked": 10} in content["cells"]
    texts = [element.text for element in ElementTree.parse(svg).getroot().iter() if element.tag.endswith("text")]
    assert {"colour", "colour, needles blanked", "frames", "depth", "64", "70%", "20%"} <= set(texts)
    with Image.open(png) as picture:
        shown = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert {colour_of(0.7), colour_of(1.0), colour_of(0.2)} <= shown


def test_both_pictures_show_the_same_cells(tmp_path: Path) -> None:
    panel = Panel(title="a < b", columns=("1", "2"), rows=("0",), shares=((0.0, None),))
    svg, png = write_heat_map([panel], tmp_path / "map", x_axis="x", y_axis="y")
    boxes = [box.attrib for box in ElementTree.parse(svg).getroot() if box.tag.endswith("rect") and "x" in box.attrib]
    assert len(boxes) == 2
    with Image.open(png) as picture:
        for box in boxes:
            corner = (int(box["x"]) + 1, int(box["y"]) + 1)
            assert "#" + bytes(picture.getpixel(corner)).hex() == box["fill"]


def test_colours_run_from_red_to_green() -> None:
    assert colour_of(0.0) != colour_of(0.5) != colour_of(1.0) != colour_of(None)
    red, green, _ = colour_of(0.1)
    assert red > green and colour_of(0.95)[1] > colour_of(0.95)[0]
    with pytest.raises(ValueError, match="a share of 1.5; expected 0 to 1"):
        colour_of(1.5)


def test_every_task_has_a_chance_below_one_half() -> None:
    assert {task: round(1 / kind.chance) for task, kind in TASKS.items()} == {"colour": 6, "shape": 4, "nth": 6, "order": 120}
