"""Cached inference is exact: over tensor and context parallelism, whole or in chunks, alone or in a batch, over a cache or from nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mindspeed_vita.checkpoint.hf.export import export_hf
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.engine import session as processes
from mindspeed_vita.inference.generate import NativeGenerator, load_generator
from mindspeed_vita.inference.hf_generate import load_hf
from mindspeed_vita.inference.request import ask
from tests.distributed.inference_runs import BLOCK, SHORT, Question
from tests.pools import Pools
from tests.tiny_checkpoint import TINY, make_tokenizer, random_weights, tiny_recipe

RUNS = "tests.distributed.inference_runs"
COUNT, FEW = 64, 4
"""Tokens of an answer; and where only the prompt's way through the cache differs."""
TOLERANCE = 1e-4
"""Of logits whose largest is 4.4; fp32 sums in another order. The worst of a first trial was 2.4e-6."""
LAYOUTS = [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2)]
TURN = 20
"""Tokens of an answer where it is the cache's history that differs: more than a block."""
TURNS = ["And how many are there?", "Is it a cat? Look again."]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A checkpoint, its export, and eight unlike questions: with pictures and a clip, with one of them, and without."""
    folder = tmp_path_factory.mktemp("asked")
    draw = np.random.default_rng(3)
    for name, size in (("wide.png", (60, 90, 3)), ("small.png", (20, 20, 3))):
        Image.fromarray(draw.integers(0, 256, size, dtype=np.uint8)).save(folder / name)
    (folder / "clip").mkdir()
    for number in range(3):
        Image.fromarray(draw.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / "clip" / f"{number}.png")
    make_tokenizer(folder / "tokenizer")
    native.save_full_weights(folder / "run", random_weights(seed=SEED), tiny_recipe(tokenizer=str(folder / "tokenizer")))
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    export_hf(random_weights(seed=SEED), tiny_recipe(), folder / "export", tokenizer=tokenizer)
    wide, small, clip = str(folder / "wide.png"), str(folder / "small.png"), str(folder / "clip")
    questions: list[Question] = [
        ("Look at <image>, <image> and at <video>. What is it?", [wide, small], [clip]),
        ("Hi?", [], []),
        ("What is it?", [small], []),
        ("A photo of a cat on a table. " * 9, [], []),
        ("Is <image> like <image>?", [wide, wide], []),
        ("How many people are in the video, and how many dogs?", [], [clip]),
        ("Yes or no?", [], []),
        ("Two people and one dog.", [wide], []),
    ]
    return {"folder": folder, "questions": questions}


SEED = 6
"""Of weights whose greedy answers do not repeat one token, so that a wrong token changes those after it."""


@pytest.fixture(scope="module")
def fixed(asked: dict[str, Any]) -> dict[str, Any]:
    """Tokens and logits of every question by `--decode fixed`."""
    borrowed = torch.distributed.is_initialized()
    generator = load_generator(asked["folder"] / "run")
    tokens, logits = {}, []
    for number, question in enumerate(asked["questions"]):
        tokens[number], scores = _teacher_forced(generator, question)
        logits.append(scores)
    if not borrowed:
        processes.shutdown()
    return {"tokens": tokens, "logits": torch.stack(logits, dim=1)}


def _teacher_forced(generator: NativeGenerator, question: Question) -> tuple[list[int], torch.Tensor]:
    """The answer of the fixed-length decoder, and all its logits from one pass over prompt and answer: [COUNT, vocabulary]."""
    request = ask(*question)
    answer = generator.generate(request, max_new_tokens=COUNT)
    assert len(answer.token_ids) == COUNT, "choose weights that do not end the turn"
    inputs = generator.inputs(generator.prompt(request, room=COUNT))
    for place, token in enumerate(answer.token_ids):
        generator._write(inputs, answer.prompt_tokens + place, token)
    rows = torch.arange(answer.prompt_tokens - 1, answer.prompt_tokens + COUNT - 1)
    return list(answer.token_ids), generator.logits(inputs, rows)


def _first(fixed: dict[str, Any], count: int) -> dict[int, list[int]]:
    return {number: tokens[:count] for number, tokens in fixed["tokens"].items()}


def test_the_fixed_decoder_and_transformers_agree(asked: dict[str, Any], fixed: dict[str, Any]) -> None:
    generator = load_hf(asked["folder"] / "export")
    for number, question in enumerate(asked["questions"]):
        assert list(generator.generate(ask(*question), max_new_tokens=COUNT).token_ids) == fixed["tokens"][number]
    assert all(len(set(tokens)) > 10 for tokens in fixed["tokens"].values())


@pytest.mark.distributed
@pytest.mark.parametrize(("tp", "cp"), LAYOUTS)
def test_every_way_finds_the_same_tokens_and_logits(
    pools: Pools, asked: dict[str, Any], fixed: dict[str, Any], tp: int, cp: int
) -> None:
    """On every rank: whole, in chunks by pass-Q and by pass-KV, in chunks of one block, as a batch of eight, one by one.

    Under tp 2 the export is loaded, otherwise the native run.
    """
    folder = asked["folder"] / ("export" if tp == 2 else "run")
    arguments = {"folder": str(folder), "questions": asked["questions"], "count": COUNT}
    for found in pools("installed").run(f"{RUNS}:exactness", tp=tp, cp=cp, **arguments):
        for way in ("whole", "pass-Q", "pass-KV", "one block a chunk"):
            tokens, logits = found[way]
            assert tokens == fixed["tokens"], way
            torch.testing.assert_close(logits, fixed["logits"], rtol=0, atol=TOLERANCE)
        assert found["one by one"] == fixed["tokens"]
        assert max(found["blocks"]) <= sum(found["blocks"]) / cp + len(asked["questions"])


@pytest.mark.distributed
@pytest.mark.parametrize(("tp", "cp"), [(1, 1), (2, 2)])
def test_caches_change_no_answer(pools: Pools, asked: dict[str, Any], fixed: dict[str, Any], tp: int, cp: int) -> None:
    """Later turns over a cache, prefix hits, preemption; nothing is left behind by what was cancelled or timed out."""
    questions = asked["questions"]
    arguments = {"folder": str(asked["folder"] / "run"), "questions": questions, "turns": TURNS, "count": TURN, "long": COUNT}
    found = pools("installed").run(f"{RUNS}:conversations", tp=tp, cp=cp, **arguments)[0]
    expected = [tuple(tokens) for tokens in _first(fixed, TURN).values()]

    turns = found["_turns"]
    assert turns["over the cache"] == turns["from nothing"] and turns["over the cache"][0] == expected[0]
    assert turns["reused"][0] == 0 and turns["reused"][1] >= 5 * BLOCK and turns["reused"][2] > turns["reused"][1]
    assert found["_hits"] == [expected, expected]
    assert found["_preempted"]["answers"] == [tuple(fixed["tokens"][number]) for number in SHORT]
    assert found["_preempted"]["preempted"] > 0 and found["_preempted"]["used"] == 0
    cancelled = found["_cancelled"]
    assert cancelled["reasons"] == ["cancelled"] * len(questions) + ["error"]
    assert cancelled["used"] == 0 and cancelled["kept"] == 0


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A checkpoint with 4 x 4 tokens a frame, and transformers' answers about a pooled film of 9 frames on its export."""
    folder = tmp_path_factory.mktemp("film")
    model = replace(TINY, vision=replace(TINY.vision, tile_size=56))
    recipe = tiny_recipe(model, tokenizer=str(folder / "tokenizer"), max_frames=16)
    tokenizer, weights = make_tokenizer(folder / "tokenizer"), random_weights(model, seed=SEED)
    native.save_full_weights(folder / "run", weights, recipe)
    pooling = "progressive:full=2,half=3,factor=4"
    export_hf(weights, recipe, folder / "export", tokenizer=tokenizer, frame_pooling=pooling)
    draw = np.random.default_rng(3)
    (folder / "frames").mkdir()
    for number in range(9):
        Image.fromarray(draw.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / "frames" / f"{number}.png")
    Image.fromarray(draw.integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(folder / "wide.png")
    frames, wide = str(folder / "frames"), str(folder / "wide.png")
    questions: list[Question] = [("Look at <image> and <video>.", [wide], [frames]), ("What?", [], [frames])]
    generator = load_hf(folder / "export")
    answers = [list(generator.generate(ask(*question), max_new_tokens=TURN).token_ids) for question in questions]
    return {"folder": str(folder / "run"), "questions": questions, "pooling": pooling, "answers": dict(enumerate(answers))}


@pytest.mark.distributed
@pytest.mark.parametrize(("tp", "cp"), [(1, 4), (2, 2)])
def test_pooled_frames_find_their_tokens_on_every_rank(pools: Pools, film: dict[str, Any], tp: int, cp: int) -> None:
    arguments = {name: film[name] for name in ("folder", "questions", "pooling")}
    for found in pools("installed").run(f"{RUNS}:pooled", tp=tp, cp=cp, count=TURN, **arguments):
        assert found == dict.fromkeys(("whole", "one block a chunk", "request loop"), film["answers"])


@pytest.mark.distributed
def test_the_older_line_of_megatron_core_decodes_without_sequence_parallelism(
    pools: Pools, asked: dict[str, Any], fixed: dict[str, Any]
) -> None:
    arguments = {"folder": str(asked["folder"] / "run"), "questions": asked["questions"][:2], "count": FEW}
    for found in pools("0.12").run(f"{RUNS}:exactness", tp=2, cp=2, **arguments):
        assert found["pass-KV"][0] == {number: fixed["tokens"][number][:FEW] for number in range(2)}


def test_the_checkpoint_is_read_under_a_layout_that_fits(asked: dict[str, Any]) -> None:
    from mindspeed_vita.inference.loading import load_model

    with pytest.raises(ValueError, match="tp=1 and cp=2 need 2 processes, one for each device; found 1. Start 2"):
        load_model(asked["folder"] / "run", cp=2)
    with pytest.raises(ValueError, match="no such folder; expected a native run or step"):
        load_model(Path(asked["folder"]) / "gone")
