"""CPU time, memory and calls of attention of a training step in each mode of recomputation, next to `full` in the same run.

    OMP_NUM_THREADS=1 DEVICE=cpu python scripts/bench/recompute.py [--tokens 16384] [--rounds 3] [--layers 2] [--hidden 128]

One document fills the pack, so attention is most of the step. The modes take turns: each ratio compares steps of the same round. Memory
is what the planner's trace of the same step counts, in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

with packages_needed():
    import torch

    from mindspeed_vita.config import Recipe, recipe_from_dict
    from mindspeed_vita.planner.trace.packs import PackContent, make_pack
    from mindspeed_vita.planner.trace.result import Trace
    from mindspeed_vita.planner.trace.step import build, run_step, trace

CONTENT = PackContent(vision=0.0)
FULL = "full"
MODES: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute": "selective"},
    "mlp": {"recompute": "mlp"},
    "full_but_attention": {"recompute": "full_but_attention"},
    "full_but_attention, inputs offloaded": {"recompute": "full_but_attention", "offload": "inputs"},
    "full in half of the layers": {"recompute": "full"},
    FULL: {"recompute": "full"},
    "full, inputs offloaded": {"recompute": "full", "offload": "inputs"},
}


def recipe_of(mode: str, sizes: argparse.Namespace) -> Recipe:
    """A decoder in bf16 with a small tower that has nothing to do; one pack a step."""
    train = {**MODES[mode], **({"recompute_layers": sizes.layers // 2} if "half" in mode else {})}
    language = {
        "num_layers": sizes.layers, "hidden_size": sizes.hidden, "num_heads": sizes.hidden // 64, "num_kv_heads": 1,
        "ffn_hidden_size": 3 * sizes.hidden, "vocab_size": 2048, "max_positions": sizes.tokens,
    }  # fmt: skip
    return recipe_from_dict(
        {
            "model": {"preset": "tiny", "language": language},
            "data": {"seq_length": sizes.tokens, "resets": False},
            "train": {**train, "global_batch": 1, "steps": 1000, "modules": ["language"]},
        }
    )


def traced(mode: str, sizes: argparse.Namespace) -> Trace:
    """What a trace finds of the step."""
    return trace(recipe_of(mode, sizes), 1, 0, content=CONTENT)


def measured(sizes: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, int]]:
    """CPU seconds of each mode's steps by round, and calls of attention's forward kernels in one step."""
    from mindspeed_vita.engine.session import distributed
    from mindspeed_vita.ops.attention import torch_native
    from mindspeed_vita.platform import get_platform

    calls: Counter[str] = Counter()
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    forward, running = torch_native.blocks_forward, ""

    def counted(*arguments: Any) -> Any:
        calls[running] += 1
        return forward(*arguments)

    torch_native.blocks_forward = counted
    platform = get_platform("cpu")
    with distributed(recipe_of(FULL, sizes), platform) as layout:
        built = {mode: build(recipe_of(mode, sizes), layout, platform) for mode in MODES}
        for _, optimizer in built.values():
            optimizer.step()  # its state is made in the first step
        for number in range(sizes.rounds):
            order = list(MODES)[number % len(MODES) :] + list(MODES)[: number % len(MODES)]
            for running in order:
                recipe = recipe_of(running, sizes)
                packs = [make_pack(recipe, layout, CONTENT)]
                started = time.process_time()
                run_step(recipe, layout, platform, model=built[running][0], optimizer=built[running][1], packs=packs)
                seconds[running].append(time.process_time() - started)
    return seconds, {mode: count // sizes.rounds for mode, count in calls.items()}


def main() -> None:
    """Prints a row per mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tokens", 16384), ("rounds", 3), ("layers", 2), ("hidden", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    sizes = parser.parse_args()
    torch.set_num_threads(1)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        traces = {mode: pool.submit(traced, mode, sizes).result() for mode in MODES}
    seconds, calls = measured(sizes)
    print("| mode | calls of attention | CPU s | time / full, each round | median | FLOPs / full | step's memory, MiB | on the host, MiB |")
    print("|---|---|---|---|---|---|---|---|")
    work = {mode: sum(found.flops().values()) for mode, found in traces.items()}
    for mode, found in traces.items():
        ratios = [one / full for one, full in zip(seconds[mode], seconds[FULL])]
        each, half = ", ".join(f"{ratio:.2f}" for ratio in ratios), f"{median(ratios):.2f}"
        memory = f"{(found.peak - found.held) / 2**20:.1f} | {found.peak_on_host / 2**20:.1f}"
        print(f"| {mode} | {calls[mode]} | {median(seconds[mode]):.1f} | {each} | {half} | {work[mode] / work[FULL]:.3f} | {memory} |")


if __name__ == "__main__":
    main()
