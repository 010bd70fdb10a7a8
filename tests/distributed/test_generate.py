"""Generation under tensor and context parallelism finds the tokens of one process and of transformers' generate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from mindspeed_vita.checkpoint.hf.export import export_hf
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.inference.hf_generate import load_hf
from mindspeed_vita.inference.request import ask
from tests.pools import Pools
from tests.tiny_checkpoint import make_tokenizer, random_weights, tiny_recipe

RUN = "tests.distributed.layout_runs:answer"


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A checkpoint, and a prompt with a tiled picture and a folder of frames."""
    folder = tmp_path_factory.mktemp("question")
    draw = np.random.default_rng(3)
    Image.fromarray(draw.integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(folder / "wide.png")
    (folder / "clip").mkdir()
    for number in range(3):
        Image.fromarray(draw.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / "clip" / f"{number}.png")
    make_tokenizer(folder / "tokenizer")
    native.save_full_weights(folder / "run", random_weights(), tiny_recipe(tokenizer=str(folder / "tokenizer")))
    media = {"images": [str(folder / "wide.png")], "videos": [str(folder / "clip")]}
    return {"folder": str(folder / "run"), "prompt": "Look at <image> and at <video>. What is it?", **media}


@pytest.fixture(scope="module")
def expected(question: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[int, ...]:
    folder = tmp_path_factory.mktemp("export") / "out"
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    export_hf(random_weights(), tiny_recipe(), folder, tokenizer=tokenizer)
    return load_hf(folder).generate(ask(question["prompt"], question["images"], question["videos"]), max_new_tokens=8).token_ids


@pytest.mark.distributed
@pytest.mark.parametrize(("tp", "cp"), [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2)])
def test_every_rank_finds_the_tokens_of_transformers(
    pools: Pools, question: dict[str, Any], expected: tuple[int, ...], tp: int, cp: int
) -> None:
    answers = pools("installed").run(RUN, tp=tp, cp=cp, **question)
    assert answers == [expected] * (tp * cp)
    assert len(expected) == 8


def test_a_wrong_number_of_processes_is_refused(question: dict[str, Any]) -> None:
    from mindspeed_vita.inference.generate import load_generator

    with pytest.raises(ValueError, match="tp=2 and cp=2 need 4 processes, one for each device; found 1. Start 4"):
        load_generator(question["folder"], tp=2, cp=2)
