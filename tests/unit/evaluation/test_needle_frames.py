"""Frames of needle tests: functions of their names, and as unlike as they must be."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from mindspeed_vita.evaluation.needle_frames import COLOURS, SHAPES, WALLS, Card, Frame, Hay, render

SIDE = 56
FRAMES: list[Frame] = [Hay(3), Card("black", "ball", "red", 1), Card("white", "cross", "cyan", 2), Card("white", "", "", 2)]


def test_a_frame_is_a_function_of_its_name() -> None:
    whole = hashlib.sha256(b"".join(render(frame, SIDE).tobytes() for frame in FRAMES)).hexdigest()
    recorded = "13648e15781364176f40d0d1c70aedb014acfe01ab45c1a5b25cb1a3bccc5c56"
    assert whole == recorded, "the pixels changed: results before and after cannot be compared any more"
    assert len({frame.name for frame in FRAMES}) == len({render(frame, SIDE).tobytes() for frame in FRAMES}) == len(FRAMES)


@pytest.mark.parametrize("wall", WALLS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_card_shows_its_shape_in_its_colour_and_nothing_else(shape: str, wall: str) -> None:
    for number, colour in enumerate(COLOURS):
        pixels = render(Card(wall, shape, colour, number), SIDE)
        found = np.unique(pixels.reshape(-1, 3), axis=0).astype(int)
        assert len(found) == 2
        share = {}
        for shade in found:
            named = {**WALLS, **COLOURS}
            near = min(named, key=lambda name: abs(np.array(named[name]) - shade).max())
            assert abs(np.array(named[near]) - shade).max() <= 20
            share[near] = (pixels == shade).all(-1).mean()
        assert set(share) == {wall, colour} and 0.05 < share[colour] < 0.55


def test_a_blanked_card_is_a_wall() -> None:
    pixels = render(Card("black", "", "", 5), SIDE)
    assert (pixels == pixels[0, 0]).all() and pixels.max() <= 45


def test_hay_is_muted_and_unlike_other_hay() -> None:
    hay = [render(Hay(number), SIDE).astype(int) for number in range(40)]
    assert len({pixels.tobytes() for pixels in hay}) == 40
    for pixels in hay:
        assert (pixels.max(-1) - pixels.min(-1)).max() <= 50 and 55 <= pixels.min() <= pixels.max() <= 205


@pytest.mark.parametrize("side", [8, 84, 448])
def test_any_size_can_be_drawn(side: int) -> None:
    assert all(render(frame, side).shape == (side, side, 3) for frame in FRAMES)
