"""Cached inference on a CPU, each figure next to its baseline in one run; ratios are what counts on a busy machine.

    OMP_NUM_THREADS=1 python -m scripts.bench.inference [--only throughput,decode,question,prefill,memory,head,prompt]

throughput: tokens per second of a tiny export, and of transformers' generate on the same weights: eight prompts one by one, and at once.
decode: CPU time of a token after a long and a short context, and of one that computes the whole sequence anew.
question: wall time to the first token of a second question about a clip of 256 frames, over that of the first.
prefill: CPU time of the slower of 2 and 4 context-parallel ranks, over that of one process.
memory: by how much the prefill of a film of 512 and of 4,096 frames raises a process's peak, and the cache in it.
head: CPU time of one row of logits over that of 16,384 rows, as the original computes them.
prompt: the longest prompt under one limit of memory, by the original's head and by one row and chunks.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

with packages_needed():
    import numpy as np
    import torch
    from PIL import Image

    from mindspeed_vita.checkpoint.hf.export import export_hf
    from mindspeed_vita.checkpoint.hf.weights import native_tensors
    from mindspeed_vita.checkpoint.native import checkpoint as native
    from mindspeed_vita.checks.parity.pool import LayoutPool
    from mindspeed_vita.config import DataConfig, LanguageConfig, ModelConfig, ProjectorConfig, Recipe, TrainConfig, VisionConfig
    from mindspeed_vita.data.tiny_tokenizer import train_tokenizer
    from mindspeed_vita.data.tokenizer import load_tokenizer
    from mindspeed_vita.inference.request import ask
    from scripts.bench.prompt_memory import film, longest_prompt, one_row

TEXTS = ["What is in this picture? A photo of a cat on a table.", "How many? Two people and one dog.", "\n\nYes.\nNo.", "system user"]
LARGER = VisionConfig(tile_size=224, patch_size=14, hidden_size=128, num_layers=4, num_heads=4, ffn_hidden_size=512)
"""A tower of 64 rows a tile, for the figure about a clip."""
VISION = VisionConfig(tile_size=28, patch_size=7, hidden_size=16, num_layers=2, num_heads=2, ffn_hidden_size=32)
LENGTHS = (20, 35, 50, 75, 100, 150, 200, 260)
"""Words of eight unlike prompts."""
LONG, SHORT = 32_768, 1024


def model(vision: VisionConfig = VISION) -> ModelConfig:
    """A small Long-VITA."""
    sizes = {"num_layers": 4, "hidden_size": 128, "num_heads": 8, "num_kv_heads": 2, "ffn_hidden_size": 256, "vocab_size": 384}
    return ModelConfig(vision=vision, projector=ProjectorConfig(hidden_size=24), language=LanguageConfig(max_positions=65_536, **sizes))


def write(folder: Path, sizes: ModelConfig) -> None:
    """A native run and an export of one random model."""
    train_tokenizer(TEXTS, 320, folder / "tokenizer")
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, tensor in native_tensors(sizes).items():
        noise = 0.05 * torch.randn(tensor.shape, generator=generator)
        weights[name] = 1 + noise if tensor.dim() == 1 and name.endswith("weight") else noise
    recipe = Recipe(
        model=sizes, train=TrainConfig(precision="fp32"), data=DataConfig(tokenizer=str(folder / "tokenizer"), max_frames=256, max_tiles=4)
    )
    native.save_full_weights(folder / "run", weights, recipe)
    from mindspeed_vita.data.templates import get_template

    tokenizer = load_tokenizer(folder / "tokenizer", get_template(recipe.data.template))
    export_hf(weights, recipe, folder / "export", tokenizer=tokenizer)


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU time of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def prompts() -> list[str]:
    """Eight unlike prompts."""
    words = ["photo", "cat", "table", "people", "dog", "picture"]
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(words, length)) for length in LENGTHS]


def throughput(folder: Path, count: int = 64) -> None:
    """Tokens per CPU second, against transformers."""
    from mindspeed_vita.inference.answer import answer_all
    from mindspeed_vita.inference.hf_generate import load_hf
    from mindspeed_vita.inference.request_loop import RequestLoop
    from mindspeed_vita.inference.sampling import SamplingParams
    from mindspeed_vita.inference.session import SessionSettings, load_session

    session = load_session(folder / "export", settings=SessionSettings(cache_memory=1 << 27))
    params, texts = SamplingParams(max_tokens=count, ignore_end=True), prompts()
    hf = load_hf(folder / "export")
    tokenizer = hf.processor.tokenizer
    tokenizer.padding_side = "left"

    def ours(chosen: list[str]) -> float:
        return cpu_seconds(lambda: answer_all(RequestLoop(session), [(ask(text), params) for text in chosen]))

    def theirs(chosen: list[str]) -> float:
        messages = [[{"role": "user", "content": text}] for text in chosen]
        written = [hf.processor.apply_chat_template(turns, add_generation_prompt=True) for turns in messages]
        inputs = tokenizer(written, return_tensors="pt", padding=True)
        options: dict[str, Any] = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
        return cpu_seconds(lambda: hf.model.generate(**inputs, **options))

    best: dict[tuple[str, int], float] = {}
    for _ in range(6):  # in turns, as other work comes and goes on the machine; the first round warms up
        for name, work in (("here", ours), ("transformers", theirs)):
            for size in (1, 8):
                seconds = sum(work([text]) for text in texts) if size == 1 else work(texts)
                best[name, size] = min(seconds, best.get((name, size), seconds))
    found = {(name, size): len(texts) * count / seconds for (name, size), seconds in best.items()}
    for (name, size), speed in found.items():
        print(f"throughput, {name}, batch {size}: {speed:.0f} tokens per CPU second")
    for size in (1, 8):
        print(f"throughput, batch {size}, over transformers: {found['here', size] / found['transformers', size]:.2f}")
    print(f"throughput, batch 8 over batch 1: {found['here', 8] / found['here', 1]:.2f}")


def decode_time(layout: Any, *, folder: str, context: int, count: int) -> dict[str, float]:
    """CPU seconds of a token after a context on this rank, and those of its attention over cached keys."""
    from mindspeed_vita.inference.cached_attention import CachedAttention
    from mindspeed_vita.inference.session import SessionSettings, load_session
    from tests.inference_steps import Drive

    session = load_session(folder, settings=SessionSettings(cache_memory=1 << 29), tp=layout.tp_size, cp=layout.cp_size)
    prompt = session.prompts.encode(ask("x"))
    tokens = np.random.default_rng(0).integers(4, 300, context)
    session.runner.add(0, type(prompt)(**{**vars(prompt), "tokens_T": tokens}), longest=context + count + 1)
    drive = Drive(session)
    start = time.process_time()
    drive.prefill([0], chunk=8192)
    prefill, spent = time.process_time() - start, [0.0]
    paged = CachedAttention._paged

    def timed(*arguments: Any) -> Any:
        begin = time.process_time()
        found = paged(*arguments)
        spent[0] += time.process_time() - begin
        return found

    CachedAttention._paged = timed  # type: ignore[method-assign]
    try:
        windows = []
        for _ in range(8):  # the best of several, as other work comes and goes on the machine
            spent[0], start = 0.0, time.process_time()
            for _ in range(count):
                drive.decode({0: 5})
            windows.append(((time.process_time() - start) / count, spent[0] / count))
        token, attention = min(windows)
        return {"token": token, "attention": attention, "prefill": prefill}
    finally:
        CachedAttention._paged = paged  # type: ignore[method-assign]


def fixed_time(layout: Any, *, folder: str, context: int) -> float:
    """CPU seconds of one token where the whole sequence is computed anew, on this rank."""
    from mindspeed_vita.inference.generate import load_generator

    generator = load_generator(folder, tp=layout.tp_size, cp=layout.cp_size)
    batch = generator.prompt(ask(" ".join(["cat"] * (context - 40))), room=1)
    inputs = generator.inputs(batch)
    print(f"decode, fixed: a sequence of {batch.cp_plan.num_tokens} tokens", flush=True)
    return cpu_seconds(lambda: generator.logits(inputs, torch.tensor([batch.cp_plan.num_tokens - 1])))


def decode(folder: Path, pool: LayoutPool) -> None:
    """A token at 32,768 tokens of context, cp 2."""
    place = {"folder": str(folder / "run")}
    ranks = {size: pool.run("scripts.bench.inference:decode_time", cp=2, context=size, count=8, **place) for size in (SHORT, LONG)}
    slowest = {size: max(found, key=lambda rank: rank["token"]) for size, found in ranks.items()}
    fixed = max(pool.run("scripts.bench.inference:fixed_time", cp=2, context=LONG, **place))
    for size, found in slowest.items():
        print(f"decode, cp 2, {size} tokens: {1000 * found['token']:.2f} ms CPU a token, of it attention {1000 * found['attention']:.2f}")
    print(f"decode, cp 2, fixed length: {1000 * fixed:.0f} ms CPU a token, {fixed / slowest[LONG]['token']:.0f} times the cached one")
    rest = slowest[LONG]["token"] - slowest[LONG]["attention"]
    print(f"decode, a token after {LONG} tokens without its attention, over one after {SHORT}: {rest / slowest[SHORT]['token']:.2f}")


def prefill(folder: Path, pool: LayoutPool, context: int = 16_384) -> None:
    """CPU time of the slower rank."""
    found = {}
    for cp in (1, 2, 4):
        ranks = pool.run("scripts.bench.inference:decode_time", cp=cp, folder=str(folder / "run"), context=context, count=1)
        found[cp] = max(rank["prefill"] for rank in ranks)
        print(f"prefill of {context} tokens, cp {cp}: {found[cp]:.2f} s CPU on the slower rank, {found[cp] / found[1]:.3f} of one process")


def question(folder: Path, frames: int = 256) -> None:
    """Time to the first token of a second question about a clip. Decoding runs in a process of its own, so this is wall time."""
    from mindspeed_vita.inference.request_loop import RequestLoop
    from mindspeed_vita.inference.sampling import SamplingParams
    from mindspeed_vita.inference.session import SessionSettings, load_session

    clip = folder / "clip"
    clip.mkdir()
    draw = np.random.default_rng(0)
    for number in range(frames):
        Image.fromarray(draw.integers(0, 256, (360, 640, 3), dtype=np.uint8)).save(clip / f"{number:04d}.jpg")
    write(folder / "larger", model(LARGER))
    loop = RequestLoop(load_session(folder / "larger" / "run", settings=SessionSettings(cache_memory=1 << 28)))
    seconds = []
    for text in ("What happens?", "Who is it, and how many people?"):

        def first(text: str = text) -> None:
            loop.add(ask(text, [], [str(clip)]), SamplingParams(max_tokens=1))
            while not loop.idle:
                loop.step()

        start = time.perf_counter()
        first()
        seconds.append(time.perf_counter() - start)
        print(f"question {text!r}: first token after {seconds[-1]:.2f} s")
    print(f"second question over the first: {seconds[1] / seconds[0]:.3f}")


def main() -> None:
    """Runs the figures that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="throughput,decode,question,prefill,memory,head,prompt")
    chosen = parser.parse_args().only.split(",")
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, model())
        if "throughput" in chosen:
            throughput(folder)
        if "question" in chosen:
            question(folder)
        if "memory" in chosen:
            film(folder, write)
        if "head" in chosen:
            one_row()
        if "prompt" in chosen:
            longest_prompt(folder, write)
        if {"decode", "prefill"} & set(chosen):
            pool = LayoutPool(4)
            try:
                if "decode" in chosen:
                    decode(folder, pool)
                if "prefill" in chosen:
                    prefill(folder, pool)
            finally:
                pool.close()


if __name__ == "__main__":
    main()
