"""Context-parallel plans on packs of the training mixture: attention work of the worst rank, keys that travel, planning time.

    python scripts/bench/plan.py [--packs 200]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

with packages_needed():
    import numpy as np
    from length_mix import TOKENS_PER_TILE, draw

    from mindspeed_vita.data.packing import plan_packs
    from mindspeed_vita.sharding import CPPlan, make_cp_plan
    from mindspeed_vita.sharding.cp_plan import rank_work

CASES = ((2, 16384, 4), (3, 131072, 2), (3, 131072, 8), (4, 1048576, 8), (4, 1048576, 32))
"""Stage of the mixture, tokens a pack, context-parallel size."""


def draw_packs(stage: int, capacity: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens and tiles of each pack's samples, by the packing plan that training uses; what exceeds a pack is cut to it."""
    sources, tokens, tiles = draw(stage, 3 * count + count * capacity // 1500)
    tiles = np.minimum(tiles, np.maximum(0, capacity - tokens + TOKENS_PER_TILE * tiles) // TOKENS_PER_TILE)
    tokens = np.minimum(tokens, capacity)
    mode = "same_source" if stage == 2 else "cross_source"
    packing = plan_packs(tokens, sources, capacity=capacity, mode=mode, seed=0, epoch=0)
    return [(tokens[samples], tiles[samples]) for samples in map(packing.pack, range(min(count, len(packing))))]


def make_packs(stage: int, capacity: int, count: int) -> list[tuple[np.ndarray, int]]:
    """Document bounds and padding of packs."""
    packs = []
    for tokens, _ in draw_packs(stage, capacity, count):
        bounds = np.concatenate([[0], np.cumsum(tokens)])
        padding = capacity - int(bounds[-1])
        packs.append((np.append(bounds, capacity) if padding else bounds, padding))
    return packs


def chunked(bounds: np.ndarray, ring_size: int, owners: np.ndarray) -> CPPlan:
    """A plan with given owners of equal chunks."""
    return CPPlan(bounds, ring_size, np.arange(len(owners) + 1) * (int(bounds[-1]) // len(owners)), owners)


def contiguous(bounds: np.ndarray, padding: int, ring_size: int) -> CPPlan:
    """Each rank a contiguous share."""
    return chunked(bounds, ring_size, np.arange(ring_size))


def zigzag(bounds: np.ndarray, padding: int, ring_size: int) -> CPPlan:
    """2 * cp chunks in zigzag over the whole pack, documents masked inside."""
    return chunked(bounds, ring_size, np.concatenate([np.arange(ring_size), np.arange(ring_size)[::-1]]))


def ours(bounds: np.ndarray, padding: int, ring_size: int) -> CPPlan:
    """sharding.make_cp_plan."""
    return make_cp_plan(bounds, ring_size, padding=padding)


def measure(packs: list[tuple[np.ndarray, int]], ring_size: int, scheme: Callable[..., CPPlan]) -> tuple[float, float, float, float]:
    """Mean over packs of worst rank's work / mean, keys received / full ring, segments of the busiest rank; longest planning, CPU s."""
    work, keys, segments, seconds = [], [], [], []
    for bounds, padding in packs:
        started = time.process_time()
        cp_plan = scheme(bounds, padding, ring_size)
        cp_plan.steps(0)
        seconds.append(time.process_time() - started)
        loads = rank_work(cp_plan)
        steps = [cp_plan.steps(rank) for rank in range(ring_size)]
        received = sum(step.num_received for rank in steps for step in rank.ring[1:])
        work.append(loads.max() / loads.mean())
        keys.append(received / (int(bounds[-1]) * (ring_size - 1)))
        segments.append(max(sum(len(step.segments) for step in rank.ring) for rank in steps))
    return float(np.mean(work)), float(np.mean(keys)), float(np.mean(segments)), float(np.max(seconds))


def per_document(packs: list[tuple[np.ndarray, int]], ring_size: int) -> tuple[float, float, float]:
    """Each document zigzagged over all ranks: even by construction, every key travels, a segment per document and step."""
    return 1.0, 1.0, float(np.mean([(len(bounds) - 1) * (2 * ring_size - 1) for bounds, _ in packs]))


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=int, default=200)
    count = parser.parse_args().packs
    print("| tokens | cp | scheme | work, worst / mean | keys / full ring | segments per rank | planning CPU s, longest |")
    print("|---|---|---|---|---|---|---|")
    made: dict[int, list[tuple[np.ndarray, int]]] = {}
    for stage, capacity, ring_size in CASES:
        packs = made.setdefault(capacity, make_packs(stage, capacity, count))
        for scheme in (contiguous, zigzag, ours):
            work, keys, segments, seconds = measure(packs, ring_size, scheme)
            row = f"{scheme.__name__} | {work:.3f} | {keys:.1%} | {segments:.0f} | {seconds:.3f}"
            print(f"| {capacity:,} | {ring_size} | {row} |", flush=True)
        even, all_keys, blocks = per_document(packs, ring_size)
        print(f"| {capacity:,} | {ring_size} | zigzag of each document | {even:.3f} | {all_keys:.1%} | {blocks:.0f} | - |")
    bounds = np.unique(np.concatenate([[0, 2**20], np.random.default_rng(0).integers(1, 2**20, 4999)]))
    for ring_size in (8, 32):
        seconds = measure([(bounds, 0)], ring_size, ours)[3]
        print(f"| 1,048,576 with {len(bounds) - 1:,} documents | {ring_size} | ours | | | | {seconds:.3f} |")


if __name__ == "__main__":
    main()
