"""Tiles of pictures and frames against hashes of the published preprocessing (tests/golden/data/pictures.json)."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindspeed_vita.hf.tiling import BACKGROUND, blank_tile, choose_grid, cut_tiles, frame_tile, image_tiles, normalize, stretch

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "data" / "pictures.json").read_text())["pictures"]


def picture(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    channels = [(3 * x + 5 * y) % 256, (x * y // 16) % 256, (x // 7 * 31 + y // 5 * 17) % 256]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def restated_grid(width: int, height: int, max_tiles: int) -> tuple[int, int]:
    """The published rule, said again without a running best: closest aspect, then the largest roomy grid, else the smallest."""
    grids = [(c, r) for c in range(1, max_tiles + 1) for r in range(1, max_tiles + 1) if c * r <= max_tiles]
    gaps = {grid: abs(width / height - grid[0] / grid[1]) for grid in grids}
    closest = sorted((grid for grid in grids if gaps[grid] == min(gaps.values())), key=lambda grid: grid[0] * grid[1])
    roomy = [grid for grid in closest[1:] if width * height > 0.5 * 448 * 448 * grid[0] * grid[1]]
    return roomy[-1] if roomy else closest[0]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['width']}x{case['height']}")
def test_tiles_equal_the_published_ones_bit_for_bit(case):
    tiles, grid = image_tiles(picture(case["width"], case["height"]))
    assert (list(grid), len(tiles), tiles.dtype) == (case["grid"], case["num_tiles"], np.uint8)
    normalised = np.ascontiguousarray(normalize(tiles), dtype="<f4")
    assert hashlib.sha256(normalised.tobytes()).hexdigest() == case["tiles_sha256"]


def one_pass(pixels: np.ndarray, size: int) -> np.ndarray:
    """Pillow's rule for one axis, restated: bicubic weights (a = -1/2) in 22 bits of fixed point. (length, ...) -> (size, ...)."""
    length = len(pixels)
    scale = length / size
    support = 2 * max(scale, 1.0)
    lines = []
    for place in range(size):
        centre = (place + 0.5) * scale
        low, high = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), length)
        x = np.abs((np.arange(low, high) - centre + 0.5) / max(scale, 1.0))
        weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((x - 5) * x + 8) * x * -0.5 + 2, 0))
        weights = weights / weights.sum()
        fixed = (weights * 2**22 + np.where(weights < 0, -0.5, 0.5)).astype(np.int64)
        lines.append(np.clip((np.tensordot(fixed, pixels[low:high].astype(np.int64), 1) + 2**21) >> 22, 0, 255))
    return np.stack(lines).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "target"), [((48, 64), (45, 45)), ((64, 48), (45, 45)), ((5, 600), (28, 28)), ((20, 33), (56, 84)), ((9, 40), (90, 8))]
)
def test_the_resize_does_the_width_first_whatever_pillow_does(size, target):
    noise = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    wide = one_pass(noise.transpose(1, 0, 2), target[0]).transpose(1, 0, 2)
    assert np.array_equal(np.asarray(stretch(Image.fromarray(noise), *target)), one_pass(wide, target[1]))


TILE_HASHES = """
import hashlib, numpy as np, PIL
from PIL import Image
from mindspeed_vita.hf.choices import TILINGS
from mindspeed_vita.hf.tiling import frame_tile, image_tiles
found = hashlib.sha256()
for size in ((30, 90), (90, 30), (48, 64), (64, 48), (7, 900)):
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    for tiling in TILINGS:
        found.update(image_tiles(image, tile_size=28, max_tiles=4, tiling=tiling)[0].tobytes())
    found.update(frame_tile(image, tile_size=28).tobytes())
print(PIL.__version__, found.hexdigest())
"""


def test_tiles_do_not_depend_on_the_release_of_pillow():
    other = os.environ.get("VITA_OTHER_PILLOW")
    if not other:
        pytest.skip("VITA_OTHER_PILLOW is not set to a folder with another release of Pillow; scripts/test.sh makes one")
    runs = []
    for path in ([], [other]):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*path, str(Path(__file__).parents[3])])}
        runs.append(
            subprocess.run([sys.executable, "-c", TILE_HASHES], env=environment, capture_output=True, text=True, check=True).stdout.split()
        )
    (version, tiles), (other_version, other_tiles) = runs
    assert version != other_version and tiles == other_tiles, runs


def test_grid_follows_the_published_rule_for_every_small_aspect():
    for width in range(20, 3000, 97):
        for height in range(20, 3000, 89):
            assert choose_grid(width, height) == restated_grid(width, height, 12), (width, height)
    assert len({choose_grid(w, h) for w in range(1, 400, 3) for h in range(1, 400, 3)}) <= 35


def test_square_grows_only_when_it_has_the_pixels():
    assert [choose_grid(side, side) for side in (448, 633, 634, 949, 951, 4000)] == [(1, 1), (1, 1), (2, 2), (2, 2), (3, 3), (3, 3)]


@pytest.mark.parametrize("wanted", [range(0), range(1), range(1, 4), range(3, 7), range(6, 7)])
def test_a_range_of_tiles_equals_the_slice_of_all(wanted):
    image = picture(225, 149)
    every, grid = image_tiles(image, tile_size=56)
    assert np.array_equal(cut_tiles(image, grid, tile_size=56, wanted=wanted), every[wanted.start : wanted.stop])


def test_thumbnail_comes_first_and_tiles_go_row_by_row():
    image = Image.new("RGB", (4, 2))
    image.putdata([(10, 0, 0), (20, 0, 0), (30, 0, 0), (40, 0, 0), (50, 0, 0), (60, 0, 0), (70, 0, 0), (80, 0, 0)])
    tiles = cut_tiles(image, (2, 1), tile_size=8)
    assert tiles.shape == (3, 3, 8, 8)
    assert tiles[1, 0].mean() < tiles[0, 0].mean() < tiles[2, 0].mean()


def test_frames_are_padded_to_a_square_and_pictures_are_not():
    wide = Image.new("RGB", (100, 50), (255, 255, 255))
    tile = frame_tile(wide, tile_size=40)
    assert tile.shape == (3, 40, 40) and tuple(tile[:, 0, 0]) == BACKGROUND and tuple(tile[:, 20, 20]) == (255, 255, 255)
    assert (cut_tiles(wide, (1, 1), tile_size=40) == 255).all()


def test_odd_padding_leaves_the_extra_line_below():
    tile = frame_tile(Image.new("RGB", (5, 2), (255, 255, 255)), tile_size=5)
    assert [int(tile[0, row, 2]) for row in range(5)] == [123, 255, 255, 123, 123]


def test_grey_and_palette_pictures_become_rgb():
    grey = Image.new("L", (30, 30), 77)
    assert (cut_tiles(grey, (1, 1), tile_size=28) == 77).all()
    assert (cut_tiles(grey.convert("P"), (1, 1), tile_size=28) == 77).all()


def test_a_blank_tile_is_nearly_zero_after_normalising():
    assert np.abs(normalize(blank_tile(28))).max() < 0.02


@pytest.mark.parametrize("sizes", [{"width": 0, "height": 5}, {"width": 5, "height": 5, "min_tiles": 3, "max_tiles": 2}])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="expected"):
        choose_grid(**sizes)
