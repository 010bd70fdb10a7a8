"""Fill, balance over data-parallel ranks, and planning of the packing plan, beside the original's two ways of packing.

    OMP_NUM_THREADS=1 python scripts/bench/packing.py [--samples 150000] [--full 36000000]

The original's are written anew from their description: samples in random order, one open pack a source (or two open packs for all), a
pack goes out when the next sample does not fit, and what is as long as a pack or longer is dropped. --full plans so many samples of stage 2
in a process of its own, writes the plan, opens it in another and looks up one step; time and peak memory are those of the processes.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

with packages_needed():
    import numpy as np
    from length_mix import draw

    from mindspeed_vita.choices import PACKINGS
    from mindspeed_vita.config import recipe_from_dict
    from mindspeed_vita.data.dealing import deal, relative_work
    from mindspeed_vita.data.packing import plan_packs
    from mindspeed_vita.data.plan_file import measure_packs, open_plan, write_plan

CASES = ((2, 16_384, 528), (3, 131_072, 64), (4, 1_048_576, 8))
"""Stage of the mixture, tokens a pack, packs a step."""
RANKS = 8
WORK = relative_work(recipe_from_dict({"model": {"preset": "14b"}}).model)


def one_bin_a_source(lengths: np.ndarray, sources: np.ndarray, capacity: int) -> list[int]:
    """Tokens of each pack, one open pack a source."""
    packs, open_packs = [], {}
    for length, source in zip(lengths.tolist(), sources.tolist()):
        used = open_packs.get(source, 0)
        if used + length > capacity:
            packs.append(used)
            used = 0
        open_packs[source] = used + length
    return packs


def two_bins(lengths: np.ndarray, sources: np.ndarray, capacity: int) -> list[int]:
    """Tokens of each pack, two open packs for all sources; the older one goes out where neither has room."""
    packs, older, newer = [], 0, 0
    for length in lengths.tolist():
        if older + length <= capacity:
            older += length
        elif newer + length <= capacity:
            newer += length
        else:
            packs.append(older)
            older, newer = newer, length
    return packs


def imbalance(costs: np.ndarray, batch: int, dealt: bool) -> float:
    """Worst rank over mean rank of a step, mean over steps: what waiting for the slowest costs."""
    found = []
    for first in range(0, len(costs) - batch + 1, batch):
        step = costs[first : first + batch]
        places = deal(step, RANKS) if dealt else [list(range(rank, batch, RANKS)) for rank in range(RANKS)]
        sums = np.array([step[own].sum() for own in places])
        found.append(sums.max() / sums.mean())
    return float(np.mean(found))


def show_fill(num_samples: int) -> None:
    """Two tables."""
    print(f"{num_samples:,} samples a stage; the original drops full-length samples, ours are fitted (cut to the pack)\n")
    print("| tokens | mode | samples dropped by the original | one pack a source | two packs | ours | us a sample |")
    print("|---|---|---|---|---|---|---|")
    balance = []
    for stage, capacity, batch in CASES:
        sources, lengths, tiles = draw(stage, num_samples)
        short = lengths < capacity
        packs = [scheme(lengths[short], sources[short], capacity) for scheme in (one_bin_a_source, two_bins)]
        old, older = (f"{np.mean(used) / capacity:.2%}" for used in packs)
        fitted = np.minimum(lengths, capacity)
        for mode in PACKINGS:
            start = time.process_time()
            plan = measure_packs(plan_packs(fitted, sources, capacity=capacity, mode=mode, seed=0, epoch=0), fitted, tiles)
            each = (time.process_time() - start) / num_samples * 1e6
            fill = plan.tokens.sum(dtype=float) / (len(plan.tokens) * capacity)
            print(f"| {capacity:,} | {mode} | {1 - short.mean():.1%} | {old} | {older} | {fill:.3%} | {each:.2f} |", flush=True)
        attention = plan.squares if stage == 2 else plan.tokens.astype(float) ** 2
        costs = capacity + WORK.attention * attention + WORK.tile * plan.tiles
        if len(costs) >= batch:
            balance.append((capacity, batch, imbalance(costs, batch, False), imbalance(costs, batch, True)))
    print(f"\n| tokens | packs a step | {RANKS} ranks, packs in turn | dealt by cost |\n|---|---|---|---|")
    for capacity, batch, before, after in balance:
        print(f"| {capacity:,} | {batch} | {before:.4f} | {after:.4f} |")


def plan_full(num_samples: int, folder: Path) -> None:
    """Plans a stage of full size and writes it."""
    sources, lengths, tiles = (np.tile(part, -(-num_samples // len(part)))[:num_samples] for part in draw(2, min(num_samples, 2_000_000)))
    lengths, tiles = np.minimum(lengths, CASES[0][1]).astype(np.int32), tiles.astype(np.int32)
    sources = sources.astype(np.int32)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    packs = plan_packs(lengths, sources, capacity=CASES[0][1], mode="same_source", seed=0, epoch=0)
    write_plan(folder, measure_packs(packs, lengths, tiles))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{num_samples:,} samples into {len(packs):,} packs and onto disk: {time.process_time() - start:.0f} CPU-seconds, peak memory "
        f"{peak / 2**20:.2f} GiB (before planning {before / 2**20:.2f})",
        flush=True,
    )


def open_full(folder: Path) -> None:
    """Opens a plan and looks up a step in the middle."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    plan = open_plan(folder)
    assert plan is not None
    middle = len(plan.packs) // 2
    samples = sum(len(plan.packs.pack(number)) for number in range(middle, middle + CASES[0][2]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"opened, step of {CASES[0][2]} packs ({samples:,} samples) found: {time.perf_counter() - start:.4f} s, peak memory "
        f"{peak / 2**10:.0f} MiB (numpy alone {before / 2**10:.0f})",
        flush=True,
    )


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=150_000)
    parser.add_argument("--full", type=int, default=0)
    parser.add_argument("--only", choices=("plan", "open"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        (plan_full(arguments.full, arguments.folder) if arguments.only == "plan" else open_full(arguments.folder))
        return
    show_fill(arguments.samples)
    if arguments.full:
        print()
        with tempfile.TemporaryDirectory() as folder:
            for step in ("plan", "open"):
                command = [sys.executable, __file__, "--full", str(arguments.full), "--only", step, "--folder", f"{folder}/epoch"]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
