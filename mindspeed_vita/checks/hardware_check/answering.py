"""How fast a loaded model answers: prefill and decode of the inference session, with its scheduler, cache and sampling."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from mindspeed_vita.checks.hardware_check.report import Report
from mindspeed_vita.checks.hardware_check.sizes import Size
from mindspeed_vita.checks.hardware_check.step_speed import speed_recipe
from mindspeed_vita.config import MODULES
from mindspeed_vita.data.templates import get_template
from mindspeed_vita.data.tiny_tokenizer import train_tokenizer
from mindspeed_vita.data.tokenizer import load_tokenizer
from mindspeed_vita.inference.loading import LoadedModel, inference_recipe
from mindspeed_vita.inference.request import Request, ask
from mindspeed_vita.inference.request_loop import RequestLoop
from mindspeed_vita.inference.sampling import SamplingParams
from mindspeed_vita.inference.session import InferenceSession, SessionSettings
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.platform import Platform

BATCH = 16
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


class _Timed:
    """A session with random weights, and the time of each step in which it answers."""

    def __init__(self, session: InferenceSession, platform: Platform) -> None:
        self.loop, self.session, self._platform, self._asked = RequestLoop(session), session, platform, 0

    def _request(self, words: int) -> Request:
        """A prompt that none before began like, so that nothing of it is in the cache."""
        self._asked += 1
        number = " ".join(f"{self._asked:04d}")
        return ask(f"{number} " + " ".join(WORDS[(self._asked + place) % len(WORDS)] for place in range(words)))

    def tokens(self, words: int) -> int:
        """Of a prompt."""
        return len(self.session.prompts.encode(self._request(words)).tokens_T)

    def times(self, words: int, answer: int, batch: int = 1) -> tuple[float, float]:
        """Seconds of the prefill of some requests, and of one decode step of all of them (the median). A round before warms up."""
        for _ in range(2):
            for _ in range(batch):
                self.loop.add(self._request(words), SamplingParams(max_tokens=answer, ignore_end=True))
            steps = []
            while not self.loop.idle:
                started = time.perf_counter()
                self.loop.step()
                self._platform.synchronize()
                steps.append(time.perf_counter() - started)
        # the first token of an answer comes with the prefill, each other one takes a step
        return sum(steps[: len(steps) - answer + 1]), statistics.median(steps[len(steps) - answer + 1 :])


def measure_answers(report: Report, platform: Platform, layout: ParallelLayout, size: Size) -> None:
    """Prefill of a long prompt; decoding after a short and a long prompt, of one sequence and of several. The weights are random."""
    with TemporaryDirectory() as folder:
        timed = _Timed(_session(Path(folder), platform, layout, size), platform)
    prompt, short = timed.tokens(size.prompt), size.prompt // 64
    first, long = timed.times(size.prompt, size.answer)
    _, one = timed.times(short, size.answer)
    _, several = timed.times(short, size.answer, BATCH)
    report.fact(f"prefill of {prompt:,} tokens, {size.name}", f"{first:.3f} s, {prompt / first:,.0f} tokens/s")
    report.measured(f"prefill tokens per second, {size.name}, {prompt} tokens", prompt / first)
    weights = sum(weight.numel() * weight.element_size() for weight in timed.session.loaded.model.language.parameters())
    report.fact(f"decode of one sequence, {size.name}", f"{one * 1000:.2f} ms a token, {weights / one / 1e9:,.0f} GB/s of weights")
    report.fact("a token after the long prompt over one after a short one", f"{long / one:.2f}")
    text = f"{BATCH / several:,.0f} tokens/s, a step takes {several / one:.2f} times that of one sequence"
    report.fact(f"decode of {BATCH} sequences", text)
    report.measured(f"decode seconds a token, {size.name}", one)
    report.measured("decode, long prompt over short", long / one)
    report.measured(f"decode, step of {BATCH} over one", several / one)


def _session(folder: Path, platform: Platform, layout: ParallelLayout, size: Size) -> InferenceSession:
    from mindspeed_vita.parallel.build import build_model

    recipe = inference_recipe(speed_recipe(size), 1, 1)
    recipe = replace(recipe, train=replace(recipe.train, modules=MODULES))
    train_tokenizer([" ".join(WORDS) + " 0 1 2 3 4 5 6 7 8 9 system user assistant"] * 4, 340, folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer", get_template(recipe.data.template))
    model = build_model(recipe, layout, platform.device, sequence_parallel=False)
    model.requires_grad_(False)
    loaded = LoadedModel(
        model=model.eval(), layout=layout, recipe=recipe, tokenizer=tokenizer, device=platform.device, identity="random weights"
    )
    return InferenceSession(loaded, SessionSettings(cache_memory=size.cache))
