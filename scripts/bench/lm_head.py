"""Time and peak memory of the three language heads at a real vocabulary: one-row inference, and training with part of the rows supervised.

    OMP_NUM_THREADS=1 python scripts/bench/lm_head.py [--rows 4096]

Each case runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

with packages_needed():
    import torch
    import torch.multiprocessing as mp

HIDDEN, VOCABULARY = 1024, 152064


def case(mode: str, rows: int, supervised: float, train: bool, results: Any) -> None:
    """Seconds and peak memory above the inputs of one case, in MB."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # megatron.core names every optional package it would like
    from mindspeed_vita.platform import get_platform

    get_platform("cpu").activate()
    from mindspeed_vita.parallel.lm_head import LanguageHead

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 1, HIDDEN, generator=generator).bfloat16().requires_grad_(train)
    weight = (torch.randn(VOCABULARY, HIDDEN, generator=generator) * 0.02).bfloat16().requires_grad_(train)
    labels = torch.randint(0, VOCABULARY, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) >= supervised] = -100
    head = LanguageHead(mode=mode, chunk=512)
    before = reset_peak()
    started = time.process_time()
    if train:
        supervised_rows = (labels != -100).nonzero().squeeze(1)
        head.losses(hidden, weight, labels, torch.ones(rows), supervised_rows).sum().backward()
    else:
        with torch.no_grad():
            chosen = torch.tensor([rows - 1]) if mode == "masked" else torch.arange(rows)
            for part in [chosen] if mode != "chunked" else chosen.split(512):
                head.logits(hidden, weight, part)
    seconds = time.process_time() - started
    results.append((seconds, (kilobytes("VmHWM") - before) / 1024))


def reset_peak() -> int:
    """Starts the count of peak memory anew, so that what set-up used does not hide what follows; KB in use now."""
    Path("/proc/self/clear_refs").write_text("5")
    return kilobytes("VmRSS")


def kilobytes(name: str) -> int:
    """A field of this process's status (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def measure(mode: str, rows: int, supervised: float, train: bool) -> tuple[float, float]:
    """One case in a fresh process."""
    with mp.get_context("spawn").Manager() as manager:
        results = manager.list()
        process = mp.get_context("spawn").Process(target=case, args=(mode, rows, supervised, train, results))
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"the {mode} head ended with status {process.exitcode}: too little memory?")
        return tuple(results[0])  # type: ignore[return-value]


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    rows = parser.parse_args().rows
    print(f"hidden {HIDDEN:,}, vocabulary {VOCABULARY:,}, {rows:,} rows, bf16, one thread; time and memory over the original head's\n")
    print("| work | head | seconds | MB | time | memory |\n|---|---|---|---|---|---|")
    for name, supervised, train in (("one row of logits", 1.0, False), ("training, 25% supervised", 0.25, True)):
        base = None
        for mode in ("original", "chunked", "masked"):
            seconds, memory = measure(mode, rows, supervised, train)
            base = base or (seconds, memory)
            print(f"| {name} | {mode} | {seconds:.2f} | {memory:,.0f} | {seconds / base[0]:.3f} | {memory / base[1]:.3f} |", flush=True)


if __name__ == "__main__":
    main()
