"""Token layout of pictures and videos against hashes of the published one (tests/golden/data)."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from mindspeed_vita.hf.token_layout import (
    NEWLINE_TOKENS,
    VISION_TOKENS,
    VisionTokenIds,
    expand,
    image_layout,
    image_token_count,
    in_tag_order,
    video_layout,
    video_token_count,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "data"
PICTURES = json.loads((GOLDEN / "pictures.json").read_text())["pictures"]
VIDEOS = json.loads((GOLDEN / "videos.json").read_text())["videos"]
RELEASED = {token: 151665 + place for place, token in enumerate(VISION_TOKENS)} | {NEWLINE_TOKENS[0]: 198}
IDS = VisionTokenIds.from_lookup(RELEASED.get)


def sha256(numbers) -> str:
    return hashlib.sha256(np.array(numbers, dtype="<i8").tobytes()).hexdigest()


def test_released_ids():
    assert (IDS.img, IDS.patch_context, IDS.image_tag, IDS.video_tag, IDS.newline) == (151665, 151673, 151680, 151681, (198,))
    assert IDS.placeholders == (151667, 151670, 151673)


@pytest.mark.parametrize("case", PICTURES, ids=lambda case: f"{case['width']}x{case['height']}")
def test_picture_tokens_equal_the_published_ones(case):
    layout = image_layout(IDS, case["num_tiles"], tuple(case["grid"]), 256)
    assert len(layout.token_ids) == case["num_tokens"] == image_token_count(tuple(case["grid"]), 256)
    assert sha256(layout.token_ids) == case["token_ids_sha256"]
    assert sha256(layout.tile_starts) == case["tile_starts_sha256"]


def test_known_picture_lengths():
    assert [image_token_count(grid, 256) for grid in ((4, 3), (3, 4), (1, 1))] == [3357, 3358, 258]


@pytest.mark.parametrize("case", VIDEOS, ids=lambda case: f"{case['kind']}-{case['num_frames']}-{case['max_frames']}")
def test_video_tokens_equal_the_published_ones(case):
    num_frames = len(case.get("frames") or case["files"])
    layout = video_layout(IDS, num_frames, 256)
    assert len(layout.token_ids) == case["num_tokens"] == video_token_count(num_frames, 256)
    assert sha256(layout.token_ids) == case["token_ids_sha256"]
    assert layout.tile_starts == [1 + 258 * frame for frame in range(num_frames)]


def test_small_picture_spelled_out():
    layout = image_layout(IDS, 5, (2, 2), 1)
    img, tile = [IDS.img, IDS.img_context, IDS.img_end], [IDS.patch, IDS.patch_context, IDS.patch_end]
    assert layout.token_ids == [*img, 198, *tile, *tile, 198, *tile, *tile]
    assert layout.tile_starts == [1, 5, 8, 12, 15]


def test_expand_is_right_for_a_video_before_a_picture():
    image, video = image_layout(IDS, 1, (1, 1), 2), video_layout(IDS, 2, 2)
    text = [7, IDS.video_tag, 8, IDS.image_tag, 9]
    media = in_tag_order(text, IDS, [image], [video])
    tokens, origins, starts = expand(text, IDS, media)
    assert tokens == [7, *video.token_ids, 8, *image.token_ids, 9]
    assert origins == [0, *[-1] * 8, 2, *[-1] * 4, 4]
    assert [tokens[start] for start in starts] == [IDS.vid_context, IDS.vid_context, IDS.img_context]
    assert all(tokens[start - 1] in (IDS.vid, IDS.img) for start in starts)


def test_expand_without_media_changes_nothing():
    assert expand([1, 2, 3], IDS, []) == ([1, 2, 3], [0, 1, 2], [])


def test_tags_at_both_ends_and_side_by_side():
    image = image_layout(IDS, 1, (1, 1), 1)
    tokens, origins, starts = expand([IDS.image_tag] * 3, IDS, [image] * 3)
    assert tokens == image.token_ids * 3 and set(origins) == {-1} and starts == [1, 4, 7]


def test_wrong_counts_are_refused():
    image = image_layout(IDS, 1, (1, 1), 1)
    with pytest.raises(ValueError, match="found 1 <image> tags for 2 images"):
        in_tag_order([IDS.image_tag], IDS, [image, image], [])
    with pytest.raises(ValueError, match="found 1 .* tags for 0"):
        expand([IDS.image_tag], IDS, [])
    with pytest.raises(ValueError, match="found a picture for the <video>"):
        expand([IDS.video_tag], IDS, [image])
    with pytest.raises(ValueError, match="found 4 tiles for a grid of 2x2, expected 5"):
        image_layout(IDS, 4, (2, 2), 1)


def test_missing_vision_tokens_are_named():
    with pytest.raises(ValueError, match="lacks <vid>, <video>"):
        VisionTokenIds.from_lookup({k: v for k, v in RELEASED.items() if k not in ("<vid>", "<video>")}.get)
