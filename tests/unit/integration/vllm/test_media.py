"""What a server is told of pictures and videos: the tokens are those of the exported processor. tests/vllm_plugin has the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mindspeed_vita.checkpoint.hf.export import export_hf
from mindspeed_vita.hf.tiling import choose_grid
from mindspeed_vita.hf.token_layout import image_token_count
from mindspeed_vita.inference.hf_generate import load_hf
from mindspeed_vita.integration.vllm import ARCHITECTURES
from mindspeed_vita.integration.vllm.media import (
    build_processor,
    frames_of,
    largest_picture,
    most_tokens,
    picture_tokens,
    token_ids,
    video_tokens,
)
from tests.tiny_checkpoint import make_tokenizer, random_weights, tiny_recipe


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("served")
    export_hf(random_weights(), tiny_recipe(), folder / "out", tokenizer=make_tokenizer(folder / "tokenizer"))
    return folder / "out", load_hf(folder / "out")


def _processor(exported: tuple[Path, Any], **options: Any) -> Any:
    folder, ours = exported
    return build_processor(folder, ours.model.config, ours.processor.tokenizer, options)


def test_tags_become_the_tokens_that_training_sees(exported: tuple[Path, Any]) -> None:
    processor, ours = _processor(exported), exported[1].processor
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 256, size, dtype=np.uint8) for size in ((40, 80, 3), (28, 28, 3), (90, 30, 3))]
    frames = draw.integers(0, 256, (3, 30, 40, 3), dtype=np.uint8)
    text = "<|im_start|>user\n<image>\nand <video>\n<image><image>?<|im_end|>\n<|im_start|>assistant\n"
    expected = ours(text=text, images=pictures, videos=[frames_of(frames)], return_tensors="np")
    ids, grids = token_ids(processor), [processor.image_processor.tile_image(picture)[1] for picture in pictures]
    media = [picture_tokens(processor, grids[0]), video_tokens(processor, 3), *(picture_tokens(processor, grid) for grid in grids[1:])]
    found: list[int] = []
    for token in processor.tokenizer(text)["input_ids"]:
        found += media.pop(0) if token in (ids.image_tag, ids.video_tag) else [token]
    assert found == expected["input_ids"][0].tolist() and not media
    assert sum(token in ids.placeholders for token in found) == 4 * len(expected["images"])


def test_no_picture_has_more_tokens_than_the_largest(exported: tuple[Path, Any]) -> None:
    processor = _processor(exported, max_tiles=12)
    width, height = largest_picture(processor)
    sizes = [(w, h) for w in range(8, 400, 24) for h in range(8, 400, 24)]
    counts = [image_token_count(choose_grid(w, h, tile_size=28, max_tiles=12), 4) for w, h in sizes]
    assert choose_grid(width, height, tile_size=28, max_tiles=12) == (1, 12)
    assert max(counts) == most_tokens(processor)["image"] == len(picture_tokens(processor, (1, 12)))
    assert most_tokens(processor)["video"] == len(video_tokens(processor, processor.max_frames))


def test_the_folders_settings_hold_unless_a_request_changes_them(exported: tuple[Path, Any]) -> None:
    assert _processor(exported).image_processor.max_tiles == 4
    changed = _processor(exported, max_tiles=2, max_frames=9)
    assert (changed.image_processor.max_tiles, changed.max_frames) == (2, 9)


def test_what_a_server_cannot_be_told_is_refused(exported: tuple[Path, Any], tmp_path: Path) -> None:
    folder, ours = exported
    with pytest.raises(ValueError, match="has crop, size; a Long-VITA processor takes min_tiles, max_tiles, max_frames"):
        _processor(exported, size=3, crop=True)
    with pytest.raises(ValueError, match="expected 1 <= min_tiles <= max_tiles"):
        _processor(exported, max_tiles=0)
    with pytest.raises(ValueError, match="is no folder on this machine; download the model"):
        build_processor(tmp_path / "gone", ours.model.config, ours.processor.tokenizer, {})
    for video in (np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), []):
        with pytest.raises(ValueError, match=r"found a video of .*; expected uint8 \(frames, height, width, 3\)"):
            frames_of(video)


def test_frames_come_as_an_array_as_pictures_or_with_metadata() -> None:
    array = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    for video in (array, (array, {"fps": 1.0}), [Image.fromarray(frame) for frame in array]):
        assert np.array_equal(np.stack([np.asarray(frame) for frame in frames_of(video)]), array)


def test_every_architecture_that_an_export_names_is_registered() -> None:
    from mindspeed_vita.checkpoint.hf.config import auto_map
    from mindspeed_vita.config import language_names, language_traits

    exported = {auto_map(language_traits(name).hf_base)["AutoModel"].split(".")[1] for name in language_names()}
    assert exported == set(ARCHITECTURES)


def test_a_folder_that_pools_frames_is_refused(exported: tuple[Path, Any], tmp_path: Path) -> None:
    folder, ours = exported
    pooled = tmp_path / "pooled"
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    export_hf(random_weights(), tiny_recipe(), pooled, tokenizer=tokenizer, frame_pooling="slow_fast:every=2,factor=2")
    with pytest.raises(ValueError, match="pools the frames of videos .* which this plugin cannot do"):
        build_processor(pooled, ours.model.config, ours.processor.tokenizer, {})
