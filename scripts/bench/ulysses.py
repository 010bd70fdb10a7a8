"""What context parallelism moves: the ring, Ulysses, and rings of Ulysses groups, on packs of the training mixture.

    python scripts/bench/ulysses.py [--packs 50]

Counts MB that the busiest rank receives in one layer's forward and backward pass, for the 14B model at tp 4 (10 query and 2 key heads of
128 a rank). bf16, but the gradients of keys that return to their owners, which are fp32.
The ring's transfers run beside its arithmetic; those of Ulysses stand before and after it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

with packages_needed():
    import numpy as np
    from plan import make_packs

    from mindspeed_vita.sharding import make_cp_plan

HEADS, KV_HEADS, WIDTH = 10, 2, 128
BF16, FP32 = 2, 4
CASES = ((2, 16384, 4), (3, 131072, 8), (4, 1048576, 8), (4, 1048576, 32))
"""Stage of the mixture, tokens a pack, context-parallel size."""


def moved(bounds: np.ndarray, padding: int, cp_size: int, ulysses: int) -> tuple[float, float]:
    """MB of the busiest rank: by the ring, by Ulysses."""
    ring = make_cp_plan(bounds, cp_size // ulysses, padding=padding)
    steps = [ring.steps(place).ring[1:] for place in range(ring.ring_size)]
    keys = [sum(step.num_received for step in rank) for rank in steps]
    returned = [sum(len(step.send) for step in rank) for rank in steps]
    pair = 2 * KV_HEADS // ulysses * WIDTH  # numbers of one token's key and value
    by_ring = max(2 * fetched * pair * BF16 + back * pair * FP32 for fetched, back in zip(keys, returned))
    tokens = int(bounds[-1]) // cp_size
    swapped = (HEADS + 2 * KV_HEADS) + HEADS  # queries, keys and values go in, outputs come back; their gradients the other way
    by_ulysses = 2 * swapped * WIDTH * BF16 * tokens * (ulysses - 1) / ulysses
    return by_ring / 2**20, by_ulysses / 2**20


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=int, default=50)
    count = parser.parse_args().packs
    print("| tokens | cp | documents | ring x Ulysses | MB by the ring | MB by Ulysses |\n|---|---|---|---|---|---|")
    for stage, capacity, cp_size in CASES:
        one = [(np.array([0, capacity]), 0)]
        for name, packs in (("of the mixture", make_packs(stage, capacity, count)), ("one", one)):
            for ulysses in (1, 2):
                sizes = [moved(bounds, padding, cp_size, ulysses) for bounds, padding in packs]
                ring, swapped = np.mean(sizes, axis=0)
                row = f"{cp_size // ulysses} x {ulysses} | {ring:,.1f} | {swapped:,.1f}"
                print(f"| {capacity:,} | {cp_size} | {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
