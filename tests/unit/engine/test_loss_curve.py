"""The loss curve of a run: what it draws, and runs that have none."""

from __future__ import annotations

import json
import math
from xml.etree import ElementTree

import pytest

from mindspeed_vita.engine.loss_curve import loss_curve, write_loss_curve

SVG = "{http://www.w3.org/2000/svg}"


def lines(text: str) -> list[list[tuple[float, float]]]:
    """Points of each polyline."""
    found = ElementTree.fromstring(text).findall(f"{SVG}polyline")
    return [[tuple(map(float, point.split(","))) for point in line.get("points").split()] for line in found]


@pytest.mark.parametrize("losses", [[4.0, 2.0, 1.0], [1.0, 0.0, -1.0], [3.0, 3.0, 3.0]])
def test_points_stand_in_order_and_inside_the_picture(losses):
    raw, mean = lines(loss_curve([10, 20, 30], losses))
    assert raw == mean and [x for x, _ in raw] == [70.0, 475.0, 880.0]
    heights = [y for _, y in raw]
    assert heights == sorted(heights) and all(40 <= y <= 370 for y in heights)
    if losses[0] != losses[-1]:
        assert heights == [40.0, 205.0, 370.0], "evenly: logarithmic where all are positive, linear elsewhere"


def test_a_long_run_is_thinned_out_and_its_mean_is_smooth():
    losses = [2 + (-1) ** step for step in range(10_000)]
    raw, mean = lines(loss_curve(range(1, 10_001), losses))
    assert len(raw) <= 801 and raw[-1][0] == 880.0
    assert max(y for _, y in mean[5:]) - min(y for _, y in mean[5:]) < 5


def test_a_run_with_less_than_two_finite_losses_has_no_curve(tmp_path):
    assert write_loss_curve(tmp_path) is None
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in ((1, 2.0), (2, math.nan))))
    assert write_loss_curve(tmp_path) is None
    metrics.write_text(metrics.read_text() + json.dumps({"step": 3, "loss": 1.0}) + "\n")
    assert write_loss_curve(tmp_path) == tmp_path / "loss.svg"
    assert len(lines((tmp_path / "loss.svg").read_text())[0]) == 2


def test_held_out_losses_are_dots_at_their_steps(tmp_path):
    entries = [{"step": 0, "eval/loss": 9.0}, {"step": 10, "loss": 4.0}, {"step": 20, "loss": 2.0}, {"step": 20, "eval/loss": 8.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in [*entries, {"step": 30, "loss": 1.0}]))
    text = write_loss_curve(tmp_path).read_text()
    dots = [(dot.get("cx"), dot.get("cy")) for dot in ElementTree.fromstring(text).findall(f"{SVG}circle")]
    assert dots == [("475.0", "40.0")] and "dots: held-out loss" in text, "the start lies before the first step, and is not drawn"
    assert [y for _, y in lines(text)[0]] == [150.0, 260.0, 370.0], "the axis holds the dots too"
