"""Prompts: media are probed by the decoder process, within the recipe's caps, and text that is none is refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mindspeed_vita.data.media.decoder import get_decoder
from mindspeed_vita.inference.prompt import PromptEncoder
from mindspeed_vita.inference.request import ask
from tests.hung_decoder import hang
from tests.tiny_checkpoint import make_tokenizer, tiny_recipe

Make = Callable[..., PromptEncoder]


@pytest.fixture
def encoder(tmp_path: Path) -> Iterator[Make]:
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    made: list[PromptEncoder] = []

    def make(**data: Any) -> PromptEncoder:
        made.append(PromptEncoder(tiny_recipe(tokenizer=str(tmp_path / "tokenizer"), **data), tokenizer))
        return made[-1]

    yield make
    for one in made:
        get_decoder(one.decoding).close()


@pytest.fixture
def film(tmp_path: Path) -> str:
    (tmp_path / "film").mkdir()
    for number in range(5):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / "film" / f"{number}.png")
    return str(tmp_path / "film")


def test_the_caps_of_the_recipe_hold_for_videos(encoder: Make, film: str) -> None:
    request = ask("What?", [], [film])
    assert len(encoder(max_video_frames=5).encode(request).media[0].numbers) > 1
    with pytest.raises(ValueError, match="video .*film has 5 frames, data.max_video_frames allows 4"):
        encoder(max_video_frames=4).encode(request)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_header_that_takes_too_long_costs_its_request_alone(encoder: Make, film: str, kind: str) -> None:
    path = film if kind == "video" else os.path.join(film, "0.png")
    request = ask("What?", *(([], [path]) if kind == "video" else ([path], [])))
    prompts = encoder()
    wanted = prompts.encode(request)
    hang(get_decoder(prompts.decoding))
    with pytest.raises(ValueError, match=f"{kind} .* took longer than 1 seconds to decode"):
        prompts.encode(request)
    assert prompts.encode(request).tokens_T.tolist() == wanted.tokens_T.tolist()


def test_half_a_surrogate_pair_is_refused(encoder: Make) -> None:
    with pytest.raises(ValueError, match="the text holds half of a surrogate pair"):
        encoder().encode(ask("a \ud800 b", [], []))
