"""Plans of inference: memory against the allocator, the cache against a count by hand, and what the command prints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import yaml

from mindspeed_vita.cli.main import main
from mindspeed_vita.config import Recipe
from mindspeed_vita.planner.proof import Case, off_by, proof_recipe
from mindspeed_vita.planner.trace.answering import Prompt, measure_inference, trace_inference

PROMPT = Prompt(tokens=2048 + 320, chunk=1024, block_size=64)


def measured_peaks(recipe: Recipe, tp: int, cp: int) -> list[int]:
    """What the two steps add at their peaks, by torch's profiler."""
    peaks = []

    @contextmanager
    def around() -> Iterator[None]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            yield
        events = profile.profiler.kineto_results.events()
        assert any(event.name() == "[memory]" for event in events)
        changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
        peaks.append(int(np.cumsum([size for _, size in changes]).max()))

    measure_inference(recipe, tp, cp, PROMPT, around)
    return peaks


@pytest.mark.parametrize("tp, cp", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_what_a_chunk_adds_is_what_the_allocator_holds(tp: int, cp: int, elsewhere, with_memory):
    recipe = proof_recipe(Case(), "small")
    traced = elsewhere(trace_inference, recipe, tp, cp, PROMPT)
    prefill, decode = with_memory(measured_peaks, recipe, tp, cp)
    assert abs(off_by(traced.prefill, prefill)) <= 0.05, (traced.prefill, prefill)
    assert abs(traced.decode - decode) <= 0.05 * decode + 2**16, (traced.decode, decode)
    language = recipe.model.language
    blocks = -(-(PROMPT.tokens + 2) // PROMPT.block_size)
    token = language.num_layers * 2 * language.num_kv_heads // tp * language.head_dim * 2  # bf16 keys and values
    assert traced.cache == (-(-blocks // cp) + 1) * PROMPT.block_size * token
    assert traced.per_token == token / cp
    if tp == 1:
        assert traced.weights == pytest.approx(elsewhere(small_weights, recipe), rel=0.001)


def small_weights(recipe: Recipe) -> int:
    """Bytes of the weights of a training step's trace."""
    from mindspeed_vita.planner.trace.step import trace

    return trace(recipe, 1, 0).peak_by(lambda place: place.part)["weights"]


def test_the_command_plans_each_cut_and_the_longest_prompt(tmp_path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({"name": "small", "model": {"preset": "tiny"}, "data": {"seq_length": 512}}), encoding="utf-8")
    line = ["plan", str(path), "--inference", "--devices", "3", "--memory", "3GiB", "--processes", "1"]
    assert main(line) == 0
    printed = capsys.readouterr().out
    assert "tp 1    cp 3 " in printed and "out: tp 3 cp 1: " in printed and "longest prompt that fits" in printed
    # fewer positions than a block of the cache has
    short = ["plan", str(path), "--inference", "--memory", "1GiB", "--processes", "1", "--prompt-tokens", "50"]
    assert main([*short, "model.language.max_positions=64"]) == 1
    printed = capsys.readouterr().out
    assert " NO " in printed and printed.splitlines()[3].endswith(" none"), printed
    assert main([*short, "model.language.max_positions=64", "--memory", "3GiB"]) == 0
    assert "62 tokens (1." in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [
        (["--longest"], "--longest needs the memory of a device, and --device npu has no size; give --memory, such as 64GiB"),
        (["--longest", "--device", "cuda"], "--device cuda has no size"),
        (["--longest", "--device", "H300"], "--device 'H300': expected one of 910B"),
        (["--longest", "--device", "910B", "--inference"], "--longest goes with training"),
        (["--prompt-tokens", "4"], "--prompt-tokens goes with --inference"),
        (["--inference", "--prompt-tokens", "0"], "--prompt-tokens is 0; expected at least 1"),
        (["--inference", "--explain", "peak.svg"], "--explain draws a step of training"),
        (["--inference", "--devices", "2", "--prompt-tokens", "99999999"], "positions"),
    ],
)
def test_bad_input_is_one_message(words: list[str], message: str, tmp_path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "small.yaml"
    path.write_text("model: {preset: tiny}\n", encoding="utf-8")
    assert main(["plan", str(path), *words]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
