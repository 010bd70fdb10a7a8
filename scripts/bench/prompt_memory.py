"""The part of scripts/bench/inference.py about the head and memory: what one row costs, how long a prompt fits under a limit, and films.

The model of the longest prompt has a sixteenth of 14B's width, key width, inner width and vocabulary. Its layers are few. Chunked prefill
keeps the keys and values of each layer, so the figure depends on their number.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

with packages_needed():
    import numpy as np
    import torch
    from PIL import Image

    from mindspeed_vita.config import LanguageConfig, ModelConfig, ProjectorConfig, VisionConfig
    from scripts.bench.lm_head import kilobytes

ROWS, PART, WORDS, WIDTH = 16_384, 2048, 152_064, 128
BIG = {"hidden_size": 5120, "key_width": 1024, "ffn_hidden_size": 13_824, "vocab_size": 152_064, "num_layers": 48}
"""14B."""
SHARE = 16
CHUNK = 128
LIMIT = 16 << 20
"""Bytes of anonymous memory in addition to what the loaded model has."""


def one_row() -> None:
    """CPU time of the logits of 16,384 rows, as the original computes them, and of the last row."""
    from mindspeed_vita.platform import get_platform

    get_platform("cpu").activate()
    from mindspeed_vita.parallel.lm_head import LanguageHead

    hidden, weight = torch.randn(ROWS, 1, WIDTH), torch.randn(WORDS, WIDTH)
    head = LanguageHead(mode="masked", chunk=512)

    def seconds(rows: torch.Tensor) -> float:
        start = time.process_time()
        head.logits(hidden, weight, rows)
        return time.process_time() - start

    # in parts, because all rows at once take 10 GB; the matrix products are the same
    original = sum(seconds(rows) for rows in torch.arange(ROWS).split(PART))
    row = statistics.median(seconds(torch.tensor([ROWS - 1])) for _ in range(9))
    said = f"all {original:.1f} s CPU, one {row:.4f} s, {row / original:.5f} of it"
    print(f"head, {ROWS} rows, {WORDS} words, width {WIDTH}: {said}", flush=True)


def shrunk(layers: int) -> ModelConfig:
    """A model with 14B's ratios of width, key width, inner width and vocabulary."""
    language = LanguageConfig(
        num_layers=layers,
        hidden_size=BIG["hidden_size"] // SHARE,
        num_heads=5,
        num_kv_heads=BIG["key_width"] // SHARE // 64,
        ffn_hidden_size=BIG["ffn_hidden_size"] // SHARE,
        vocab_size=BIG["vocab_size"] // SHARE,
        max_positions=1 << 20,
    )
    tower = VisionConfig(tile_size=28, patch_size=7, hidden_size=16, num_layers=1, num_heads=2, ffn_hidden_size=32)
    return ModelConfig(vision=tower, projector=ProjectorConfig(hidden_size=16), language=language)


def longest(layout: Any, *, folder: str, way: str, guess: int) -> dict[str, float]:
    """The longest prompt whose first token is found with LIMIT bytes of anonymous memory, to 3%, and the bytes of a token.

    Args:
        layout: of one process.
        folder: a native run.
        way: original (all tokens at once, logits of all rows) | ours (chunks and a cache of the prompt's size, logits of the last row).
        guess: where to begin.
    """
    attempt = _original(folder) if way == "original" else _ours(folder)
    attempt(CHUNK)  # what is allocated once
    before = kilobytes("VmData") * 1024
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    fits, fails, length = 0, 0, guess
    try:
        while not fails or not fits or fails > 1.03 * fits:
            resource.setrlimit(resource.RLIMIT_DATA, (before + LIMIT, most))
            try:
                attempt(length)
                fits = length
            except RuntimeError as error:  # torch's allocator
                if "can't allocate memory" not in str(error):
                    raise
                fails = length
            finally:
                resource.setrlimit(resource.RLIMIT_DATA, (most, most))
            length = (fits + fails) // 2 if fits and fails else length * 3 // 2 if fits else length * 2 // 3
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    return {"tokens": fits, "bytes": LIMIT / fits}


def _tokens(length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(4, 300, length)


def _original(folder: str) -> Callable[[int], None]:
    from mindspeed_vita.inference.generate import load_generator
    from mindspeed_vita.inference.request import ask

    generator = load_generator(folder)
    encoded = generator.prompts.encode(ask("x"))

    def attempt(length: int) -> None:
        prompt = replace(encoded, tokens_T=_tokens(length), labels_T=np.full(length, -100, dtype=np.int64))
        generator.prompts.encode = lambda request: prompt  # type: ignore[method-assign]
        inputs = generator.inputs(generator.prompt(ask("x")))
        generator.logits(inputs, torch.arange(length))

    return attempt


def _ours(folder: str) -> Callable[[int], None]:
    from mindspeed_vita.inference.kv_cache import bytes_per_block
    from mindspeed_vita.inference.loading import load_model
    from mindspeed_vita.inference.request import ask
    from mindspeed_vita.inference.session import InferenceSession, SessionSettings
    from tests.inference_steps import Drive

    loaded = load_model(folder)
    language = loaded.recipe.model.language
    block = bytes_per_block(
        num_layers=language.num_layers,
        block_size=CHUNK,
        kv_heads=language.num_kv_heads,
        head_dim=language.head_dim,
        dtype=torch.float32,
    )

    def attempt(length: int) -> None:
        session = InferenceSession(loaded, SessionSettings(cache_memory=-(-length // CHUNK) * block, block_size=CHUNK))
        session.runner.add(0, replace(session.prompts.encode(ask("x")), tokens_T=_tokens(length)), longest=length + 1)
        Drive(session).prefill([0], chunk=CHUNK)

    return attempt


def longest_prompt(folder: Path, write: Callable[[Path, ModelConfig], None], layers: int = 4) -> None:
    """The longest prompt under one limit of memory, with the original's head and with one row."""
    from mindspeed_vita.checks.parity.pool import LayoutPool

    write(folder / "shrunk", shrunk(layers))
    found = {}
    for way, guess in (("original", 350), ("ours", 5000)):
        pool = LayoutPool(1)  # a process of its own, so that nothing is left from the other way
        try:
            place = {"folder": str(folder / "shrunk" / "run"), "way": way, "guess": guess}
            found[way] = pool.run("scripts.bench.prompt_memory:longest", **place)[0]
        finally:
            pool.close()
        tokens, size = found[way]["tokens"], found[way]["bytes"] / 1024
        print(f"prompt, {layers} layers, {LIMIT >> 20} MiB, {way}: {tokens:,} tokens, {size:.1f} KiB each", flush=True)
    ratio = found["ours"]["tokens"] / found["original"]["tokens"]
    print(f"prompt, one row and chunks of {CHUNK} over the original's head: {ratio:.1f} times")


FILM = ModelConfig(
    vision=VisionConfig(tile_size=112, patch_size=14, hidden_size=64, num_layers=2, num_heads=4, ffn_hidden_size=256),
    projector=ProjectorConfig(hidden_size=24),
    language=LanguageConfig(
        num_layers=1, hidden_size=32, num_heads=2, num_kv_heads=1, ffn_hidden_size=64, vocab_size=384, max_positions=1 << 17
    ),
)
"""16 rows a frame: 4,096 frames make a prompt of 74,000 tokens."""


def film_memory(layout: Any, *, folder: str, clip: str, frames: int) -> dict[str, float]:
    """MB by which the prefill of a film raises this process's peak, and those of the cache that it fills."""
    from mindspeed_vita.inference.request import ask
    from mindspeed_vita.inference.request_loop import RequestLoop
    from mindspeed_vita.inference.sampling import SamplingParams
    from mindspeed_vita.inference.session import SessionSettings, load_session

    session = load_session(folder, settings=SessionSettings(cache_memory=1 << 28, tiles_in_flight=16), max_frames=frames)
    loop = RequestLoop(session, prefill_tokens=2048)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loop.add(ask("What happens?", [], [clip]), SamplingParams(max_tokens=1))
    while not loop.idle:
        loop.step()
    held = sum(counts.cached for counts in loop.counts())
    cache = held * session.cache.tensor.nbytes / session.cache.num_blocks
    return {"peak": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, "cache": cache / 2**20}


def film(folder: Path, write: Callable[[Path, ModelConfig], None], most: int = 4096) -> None:
    """Memory of a film's prefill, which must not grow with the film but for the cache."""
    from mindspeed_vita.checks.parity.pool import LayoutPool

    clip = folder / "film"
    clip.mkdir()
    draw = np.random.default_rng(0)
    for number in range(most):
        Image.fromarray(draw.integers(0, 256, (90, 160, 3), dtype=np.uint8)).save(clip / f"{number:04d}.jpg")
    write(folder / "film_model", FILM)
    for frames in (most // 8, most):
        pool = LayoutPool(1)  # a new process each time: a peak never falls
        try:
            place = {"folder": str(folder / "film_model" / "run"), "clip": str(clip)}
            found = pool.run("scripts.bench.prompt_memory:film_memory", frames=frames, **place)[0]
        finally:
            pool.close()
        pixels = frames * 3 * FILM.vision.tile_size**2 / 2**20
        peak, cache = found["peak"], found["cache"]
        print(f"memory, {frames} frames: peak {peak:.0f} MB, of it cache {cache:.0f} MB; its tiles: {pixels:.0f} MB", flush=True)
