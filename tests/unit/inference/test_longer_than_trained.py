"""Longer than trained: rotary scaling and pooled frames give a session what they give transformers on the export."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mindspeed_vita.checkpoint.hf.processor import read_frame_pooling
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.cli.main import main
from mindspeed_vita.engine import session as processes
from mindspeed_vita.inference.answer import answer_all, generate
from mindspeed_vita.inference.block_names import pooled_digest
from mindspeed_vita.inference.hf_generate import load_hf
from mindspeed_vita.inference.loading import load_model
from mindspeed_vita.inference.request import ask
from mindspeed_vita.inference.request_loop import RequestLoop
from mindspeed_vita.inference.sampling import SamplingParams
from mindspeed_vita.inference.session import InferenceSession, SessionSettings, load_session
from tests.inference_steps import Drive
from tests.tiny_checkpoint import TINY, make_tokenizer, random_weights, tiny_recipe

SMALL = SessionSettings(cache_memory=1 << 24, block_size=16)
TRAINED, BEYOND = 256, 600
"""Positions of training, and a prompt longer than that."""
MODEL = replace(
    TINY,
    vision=replace(TINY.vision, tile_size=56),  # 4 x 4 tokens a frame
    language=replace(TINY.language, max_positions=TRAINED),
)
LONGROPE = "{kind: longrope, factor: 8, original_positions: 256, short_factor: [1, 1.1, 1.2, 1.3], long_factor: [1, 2, 4, 8]}"
KINDS = {
    "linear": "{kind: linear, factor: 8}",
    "ntk": "{kind: ntk, factor: 8}",
    "yarn": "{kind: yarn, factor: 8, original_positions: 256}",
    "longrope": LONGROPE,
}
POOLINGS = ["slow_fast:every=3,factor=2", "progressive:full=2,half=3,factor=4"]
TOLERANCE = 1e-4
"""Of logits up to 5."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A native run, a picture and a film of 9 frames."""
    folder = tmp_path_factory.mktemp("longer")
    recipe = tiny_recipe(MODEL, tokenizer=str(folder / "tokenizer"), max_frames=16)
    make_tokenizer(folder / "tokenizer")
    native.save_full_weights(folder / "run", random_weights(MODEL, seed=6), recipe)
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (60, 120, 3), dtype=np.uint8)).save(folder / "wide.png")
    (folder / "film").mkdir()
    for number in range(9):
        Image.fromarray(draw.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / "film" / f"{number}.png")
    borrowed = torch.distributed.is_initialized()
    yield folder
    if not borrowed:
        processes.shutdown()


def _export(folder: Path, output: Path, *options: str) -> Path:
    assert main(["convert", "--from", str(folder / "run"), "--to", "hf", "--output", str(output), *options]) == 0
    return output


def _logits(session: InferenceSession, request: Any, count: int, chunk: int = 1 << 20) -> tuple[list[int], torch.Tensor]:
    session.runner.add(0, session.prompts.encode(request), longest=BEYOND + 400)
    answers, logits = Drive(session).greedy([0], count, chunk=chunk)
    return answers[0], logits[:, 0]


def _teacher_forced(exported: Path, request: Any, answer: list[int]) -> tuple[torch.Tensor, int]:
    """The export's logits of an answer's tokens by transformers in one pass, and the length of the prompt."""
    ours = load_hf(exported)
    messages = [{"role": message.role, "content": message.content} for message in request.messages]
    text = ours.processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = ours.processor(text=text, images=list(request.images), videos=list(request.videos), return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    ids = torch.cat([inputs["input_ids"], torch.tensor([answer[:-1]])], 1)
    media = {name: inputs[name] for name in ("images", "image_indices") if name in inputs}
    with torch.no_grad():
        return ours.model(input_ids=ids, **media).logits[0, length - 1 :], length


@pytest.mark.parametrize("kind", KINDS)
def test_scaled_positions_equal_transformers_on_the_export(folder: Path, tmp_path: Path, kind: str) -> None:
    request = ask("A photo of a cat. " * 60 + "<image> What is it?", [str(folder / "wide.png")])
    session = load_session(folder / "run", settings=SMALL, rope_scaling=KINDS[kind])
    answer, logits = _logits(session, request, 8)
    expected, length = _teacher_forced(_export(folder, tmp_path / "out", "--rope-scaling", KINDS[kind]), request, answer)
    assert length > BEYOND
    torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(_logits(session, request, 2, chunk=64)[1], expected[:2], rtol=0, atol=TOLERANCE)
    plain = InferenceSession(replace(session.loaded, model=load_model(folder / "run").model), SMALL)
    assert (_logits(plain, request, 1)[1] - expected[:1]).abs().max() > 0.01


def test_a_prompt_longer_than_training_is_taken_with_scaling_only(folder: Path) -> None:
    request = ask("A photo of a cat. " * 60)
    with pytest.raises(ValueError, match="the model has 256 positions"):
        generate(load_session(folder / "run", settings=SMALL), [request], SamplingParams(max_tokens=4))
    assert generate(load_session(folder / "run", settings=SMALL, rope_scaling=KINDS["yarn"]), [request], SamplingParams(max_tokens=4))


def test_the_baseline_scales_alike(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for way in ("fixed", "cached"):
        options = ["--prompt", "A photo of a cat. " * 20, "--max-new-tokens", "6", "--rope-scaling", KINDS["yarn"]]
        assert main(["generate", str(folder / "run"), *options, "--decode", way]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_longrope_shares_no_blocks_between_long_and_short_sequences(folder: Path) -> None:
    """The same prompt with room for a short and for a long answer: their keys are turned by different frequencies."""
    session = load_session(folder / "run", settings=SMALL, rope_scaling=LONGROPE)
    request, short, long = ask("A photo of a cat. " * 12), SamplingParams(max_tokens=3), SamplingParams(max_tokens=250)
    fresh = answer_all(RequestLoop(session), [(request, long)])[0]
    loop = RequestLoop(session)
    answer_all(loop, [(request, short)])
    assert fresh.prompt_tokens + 3 <= TRAINED < fresh.prompt_tokens + 250
    assert answer_all(loop, [(request, long)])[0] == fresh
    number = loop.add(request, short)
    loop.step()
    assert [state.cached_tokens for state in loop.scheduler.running if state.number == number] == [fresh.prompt_tokens // 16 * 16]


# Pooled frames


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooled_frames_equal_transformers_on_the_export(folder: Path, tmp_path: Path, pooling: str) -> None:
    """Tokens and logits, whole and in chunks that cut frames, next to a picture, which is not pooled."""
    request = ask("Look at <video> and <image>.", [str(folder / "wide.png")], [str(folder / "film")])
    exported = _export(folder, tmp_path / "out", "--frame-pooling", pooling)
    by_transformers = load_hf(exported).generate(request, max_new_tokens=16)
    for path in (folder / "run", exported):
        session = load_session(path, settings=SMALL, frame_pooling=pooling if path != exported else None)
        answer, logits = _logits(session, request, 16)
        assert tuple(answer) == by_transformers.token_ids and len(set(answer)) > 4
        expected, length = _teacher_forced(exported, request, answer)
        assert length == by_transformers.prompt_tokens == len(session.runner.prompts[0].tokens_T)
        torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(_logits(session, request, 4, chunk=16)[1], expected[:4], rtol=0, atol=TOLERANCE)
        assert generate(session, [request], SamplingParams(max_tokens=16))[0].token_ids == by_transformers.token_ids


def test_factor_one_everywhere_changes_no_bit(folder: Path) -> None:
    request = ask("What?", [str(folder / "wide.png")], [str(folder / "film")])
    poolings = (None, "none", "slow_fast:every=2,factor=1", "progressive:full=9")
    found = [_logits(load_session(folder / "run", settings=SMALL, frame_pooling=pooling), request, 4) for pooling in poolings]
    assert all(answer == found[0][0] and torch.equal(logits, found[0][1]) for answer, logits in found[1:])


def test_blocks_of_other_factors_have_other_names(folder: Path) -> None:
    """One film, pooled in two ways, with equal tokens at the beginning: its blocks are never taken for each other."""
    request, names, frames = ask("What?", [], [str(folder / "film")]), [], []
    for pooling in ("slow_fast:every=9,factor=2", "slow_fast:every=9,factor=4", None, "none"):
        loop = RequestLoop(load_session(folder / "run", settings=SMALL, frame_pooling=pooling))
        number = loop.add(request, SamplingParams(max_tokens=4))
        loop.step()
        names.append(next(state.names.names for state in loop.scheduler.running if state.number == number))
        frames.append(loop.session.prompts.encode(request))
    first_pooled = int(frames[0].tile_starts_N[1]) // 16
    assert names[0][:first_pooled] == names[1][:first_pooled] and first_pooled > 0
    assert names[0][first_pooled] != names[1][first_pooled] != names[2][first_pooled] and names[2] == names[3]
    digests = [pooled_digest(bytes(32), factor) for factor in (1, 2, 4)]
    assert digests[0] == bytes(32) and len(set(digests)) == 3


def test_an_export_says_how_it_pools_only_where_it_was_asked(folder: Path, tmp_path: Path) -> None:
    plain, pooled = _export(folder, tmp_path / "plain"), _export(folder, tmp_path / "pooled", "--frame-pooling", POOLINGS[0])
    changed = [path.name for path in plain.iterdir() if path.read_bytes() != (pooled / path.name).read_bytes()]
    assert changed == ["processor_config.json"] and read_frame_pooling(plain) is None and read_frame_pooling(pooled) == POOLINGS[0]
    again = tmp_path / "again"
    assert main(["convert", "--from", str(pooled), "--to", "hf", "--output", str(again)]) == 0
    assert read_frame_pooling(again) == POOLINGS[0]
    request = ask("What?", [], [str(folder / "film")])
    lengths = [load_hf(path, frame_pooling=way).generate(request, max_new_tokens=1).prompt_tokens for path, way in
               ((plain, None), (pooled, "none"), (pooled, None), (plain, POOLINGS[0]))]  # fmt: skip
    assert lengths[0] == lengths[1] > lengths[2] == lengths[3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frame-pooling", "slow_fast:factor=8"], "frame pooling by 8 does not divide a frame's grid of 4 x 4 tokens"),
        (["--frame-pooling", "slow_fast:factor=2", "--decode", "fixed"], "--decode fixed computes a pack as training does"),
        (["--rope-scaling", "{kind: yarn}"], "expected factor and original_positions as well"),
    ],
)
def test_bad_options_end_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert main(["generate", str(folder / "run"), "--prompt", "Hi", *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_convert_refuses_what_a_format_cannot_hold(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ["convert", "--from", str(folder / "run"), "--output", str(tmp_path / "out")]
    assert main([*source, "--to", "native", "--frame-pooling", "none"]) == 2
    assert "leave it out with --to native" in capsys.readouterr().err
    assert main([*source, "--to", "hf", "--frame-pooling", "slow_fast:factor=8"]) == 2
    assert "does not divide a frame's grid of 4 x 4 tokens" in capsys.readouterr().err and not (tmp_path / "out").exists()
