"""Pooled frames: the plan of factors, token counts and positions by brute force, and clear refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mindspeed_vita.data.tokenizer import load_tokenizer
from mindspeed_vita.hf.frame_pooling import read_pooling
from mindspeed_vita.hf.image_processing_long_vita import LongVitaImageProcessor
from mindspeed_vita.hf.processing_long_vita import LongVitaProcessor
from mindspeed_vita.hf.token_layout import VISION_TOKENS, VisionTokenIds, video_layout

TEXT = "a <video> b <image> c <video>"
STRATEGIES = ["slow_fast:every=2,factor=2", "slow_fast:every=3,factor=4", "progressive:full=1,half=2,factor=4", "slow_fast:every=1"]


def test_the_factors_spelled_out() -> None:
    def factors(text: str | None, num_frames: int) -> list[int]:
        return read_pooling(text, 256).factors(num_frames)

    assert factors(None, 3) == factors("none", 3) == factors("slow_fast:factor=1", 3) == [1, 1, 1]
    assert factors("slow_fast", 6) == [1, 4, 4, 4, 1, 4]
    assert factors("slow_fast:every=3,factor=2", 7) == [1, 2, 2, 1, 2, 2, 1]
    assert factors("progressive:full=2,half=3,factor=8", 8) == [8, 8, 8, 2, 2, 2, 1, 1]
    assert factors("progressive:half=0,full=1", 3) == [4, 4, 1]
    assert factors("progressive:full=5", 4) == [1] * 4
    assert factors("progressive", 60) == [4] * 12 + [2] * 32 + [1] * 16


@pytest.mark.parametrize("text", ["slow_fast:every=4,factor=4", "progressive:full=3,half=5,factor=8", None])
@pytest.mark.parametrize("num_frames", [1, 2, 9, 40])
def test_counts_and_positions_by_brute_force(text: str | None, num_frames: int) -> None:
    ids = VisionTokenIds.from_lookup({token: 100 + place for place, token in enumerate((*VISION_TOKENS, "Ċ"))}.get)
    factors = read_pooling(text, 256).factors(num_frames)
    layout = video_layout(ids, num_frames, 256, factors)
    tokens: list[int] = []
    for factor in factors:
        squares = [(row, column) for row in range(0, 16, factor) for column in range(0, 16, factor)]
        tokens += [ids.vid, *(ids.vid_context for _ in squares), ids.vid_end]
    assert layout.token_ids == tokens
    assert layout.tile_starts == [place + 1 for place, token in enumerate(tokens) if token == ids.vid]
    if text is None:
        assert layout == video_layout(ids, num_frames, 256)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slowfast", "frame pooling is 'slowfast'; expected none, slow_fast:every=4"),
        ("slow_fast:every", "frame pooling is 'slow_fast:every'; expected none"),
        ("", None),
        ("slow_fast:half=3", "has the unknown parameter half; slow_fast has: every, factor"),
        ("none:every=3", "has the unknown parameter every; none has: none"),
        ("slow_fast:every=0", "has every=0; expected at least 1"),
        ("progressive:full=-1", "has full=-1; expected at least 0"),
        ("progressive:factor=1", "has factor=1; expected at least 2"),
        ("slow_fast:factor=3", "frame pooling by 3 does not divide a frame's grid of 16 x 16 tokens; choose a divisor of 16"),
    ],
)
def test_bad_options_get_one_message(text: str, message: str | None) -> None:
    if message is None:
        assert read_pooling(text, 256).strategy == "none"
        return
    with pytest.raises(ValueError) as caught:
        read_pooling(text, 256)
    assert message in str(caught.value)


def test_every_factor_that_a_frame_may_have_must_fit() -> None:
    read_pooling("slow_fast:factor=3", 81)
    with pytest.raises(ValueError, match="pooling by 2 does not divide a frame's grid of 9 x 9 tokens"):
        read_pooling("progressive:factor=3", 81)
    read_pooling("progressive:half=0,factor=3", 81)
    with pytest.raises(ValueError, match="a frame has 272 tokens, which are no square grid"):
        read_pooling("slow_fast", 272)


@pytest.fixture(scope="module")
def processor(tokenizer_folder: Path) -> LongVitaProcessor:
    """Frames of 4 x 4 tokens."""
    images = LongVitaImageProcessor(tile_size=56, max_tiles=4)
    return LongVitaProcessor(images, load_tokenizer(tokenizer_folder), tokens_per_tile=16, max_frames=8)


@pytest.mark.parametrize("text", STRATEGIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_of_the_processor_are_those_of_the_context_tokens(
    processor: LongVitaProcessor, pictures: dict[str, Any], text: str, side: str
) -> None:
    videos, images = [[pictures["frames"], pictures["clip"]], []], [[pictures["wide_file"]], []]
    batch = processor(text=[TEXT, "short"], images=images, videos=videos, return_tensors="pt", padding_side=side, frame_pooling=text)
    ids = VisionTokenIds.from_lookup(processor.tokenizer.get_vocab().get)
    row_NL, position_NL = batch["image_indices"]
    real_NL = position_NL >= 0
    context_BT = torch.isin(batch["input_ids"], torch.tensor(ids.placeholders))
    # in row order, as the ids have them
    assert torch.stack([row_NL[real_NL], position_NL[real_NL]]).T.tolist() == context_BT.nonzero().tolist()
    factors = read_pooling(text, 16).factors(3)
    assert real_NL.sum(1).tolist() == [16 // factor**2 for factor in (*factors, *[1] * 3, *factors)]
    assert (position_NL[~real_NL] == -1).all() and all((np.diff(row) < 2).all() for row in position_NL.numpy())
    plain = processor(text=[TEXT, "short"], images=images, videos=videos, return_tensors="pt", padding_side=side)
    assert torch.equal(plain["images"], batch["images"])
    if text == "slow_fast:every=1":
        assert all(torch.equal(plain[name], batch[name]) for name in plain)


def test_the_processor_keeps_its_own_setting(processor: LongVitaProcessor, pictures: dict[str, Any], tmp_path: Path) -> None:
    pooled = LongVitaProcessor(
        processor.image_processor, processor.tokenizer, tokens_per_tile=16, frame_pooling="slow_fast:every=2,factor=4"
    )
    ask = {"text": "<video>", "videos": [pictures["frames"]]}
    assert [len(pooled(**ask, **option)["input_ids"][0]) for option in ({}, {"frame_pooling": "none"})] == [18 + 3 + 18, 3 * 18]
    with pytest.raises(ValueError, match="frame pooling by 8 does not divide a frame's grid of 4 x 4 tokens"):
        pooled(**ask, frame_pooling="slow_fast:factor=8")
    with pytest.raises(ValueError, match="frame pooling is 'half'"):
        LongVitaProcessor(processor.image_processor, processor.tokenizer, tokens_per_tile=16, frame_pooling="half")
