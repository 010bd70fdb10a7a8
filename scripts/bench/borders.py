"""What a ring sends across the borders of nodes, next to MindSpeed's single and double ring.

    python scripts/bench/borders.py [--packs 10]

Counts MB that a node sends to other nodes in one layer's forward and backward pass, as a mean over nodes, for the 14B model at tp 4 (2 key
heads of 128 per rank). The last two columns compare "by node" with MindSpeed's better ring: all nodes together, and the busiest one alone.
Keys and values are bf16. Their gradients return in fp32 or, with parallel.ring_gradients=bf16, in bf16. MindSpeed's gradients have the
dtype of the keys. "by node" is what training uses: its ring, and its plan for these nodes. "direct" is parallel.cp_per_node=cp.

Who sends what to whom in MindSpeed is read from 26.1.0_core_r0.12.1, mindspeed/core/context_parallel: AttentionWithCp.forward and
.backward in ring_context_parallel/ring_context_parallel.py, and initialize_context_parallel_group_for_double_ring in
model_parallel_utils.py. That code itself, run on 4 and 8 processes over an emulated torch_npu, sent the same. Its packed sequences are
padded to multiples of 2 * cp, which is not counted here.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

with packages_needed():
    import numpy as np

    from mindspeed_vita.sharding import CPPlan, make_cp_plan

KV_HEADS, WIDTH = 2, 128
ROW = 2 * KV_HEADS * WIDTH
"""Numbers of one token's key and value."""
BF16, FP32 = 2, 4
STAGE, TOKENS = 4, 1048576
CP_SIZES, NODE_SIZES = (8, 16, 32), (1, 2, 4, 8)


@dataclass(frozen=True)
class Crossing:
    """Rows of keys and values that each node sends to other nodes in one layer.

    Attributes:
        keys: int64[nodes], over the forward and the backward pass.
        gradients: int64[nodes], in the backward pass.
    """

    keys: np.ndarray
    gradients: np.ndarray

    def megabytes(self, gradient_bytes: int) -> np.ndarray:
        """MB of each node, with gradients of so many bytes per number: float[nodes]."""
        return (self.keys * BF16 + self.gradients * gradient_bytes) * ROW / 2**20


def direct(cp_plan: CPPlan, node_size: int) -> Crossing:
    """The ring that sends each rank its keys directly."""
    size = cp_plan.ring_size
    rows = np.zeros((size, size), dtype=np.int64)  # from, to
    for rank in range(size):
        for distance, step in enumerate(cp_plan.by_node(0).steps(rank).ring):
            rows[rank, (rank + distance) % size] = len(step.send)
    return _crossing(2 * rows, rows.T, node_size)


def by_node(cp_plan: CPPlan) -> Crossing:
    """The ring whose keys cross a border once for all ranks of a node, for a plan over several nodes."""
    size, node_size = cp_plan.ring_size, cp_plan.node_size
    rows = np.zeros((size, size), dtype=np.int64)
    for rank in range(size):
        for number, held in enumerate(cp_plan.steps(rank).rounds):
            rows[rank, (rank + number * node_size) % size] += len(held.send)
    return _crossing(2 * rows, rows.T, node_size)


def mindspeed(tokens: int, size: int, node_size: int, window: int) -> Crossing:
    """MindSpeed's ring of windows (--cp-window-size); 1 is its single ring. Every transfer holds all keys of a rank."""
    keys, gradients = mindspeed_transfers(size, window)
    return _crossing(keys * (tokens // size), gradients * (tokens // size), node_size)


def mindspeed_transfers(size: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each rank sends keys, and gradients, to each rank in a layer: two int64[ranks, ranks], from and to.

    The inner ring goes around each window, the outer one over the ranks with the same number in each window. In the backward pass keys go
    the other way around, and gradients that go to the next window move on by one number.
    """
    windows = size // window
    keys, gradients = (np.zeros((size, size), dtype=np.int64) for _ in range(2))
    for rank in range(size):
        at, number = divmod(rank, window)
        for way in (1, -1):
            keys[rank, (at + way) % windows * window + number] += windows - 1
            keys[rank, at * window + (number + way) % window] += windows * (window - 1)
        gradients[rank, at * window + (number - 1) % window] += windows * (window - 1)
        gradients[rank, (at - 1) % windows * window + (number - 1) % window] += windows - 1
    return keys, gradients


def _crossing(keys: np.ndarray, gradients: np.ndarray, node_size: int) -> Crossing:
    """Sums of what goes from each node to other nodes.

    Args:
        keys, gradients: int64[ranks, ranks], rows from a rank to a rank in a layer, both passes together.
        node_size: ranks of a node.
    """
    node = np.arange(len(keys)) // node_size
    outside = node[:, None] != node[None, :]

    def by_sender(rows: np.ndarray) -> np.ndarray:
        return np.bincount(node, weights=np.where(outside, rows, 0).sum(1)).astype(np.int64)

    return Crossing(by_sender(keys), by_sender(gradients))


def rows_of_table(bounds: np.ndarray, padding: int, size: int, node_size: int) -> dict[str, np.ndarray]:
    """MB of each node by scheme, for one pack."""
    tokens = int(bounds[-1])
    window = node_size if node_size < size else 1  # MindSpeed refuses a window of all ranks
    flat = make_cp_plan(bounds, size, padding=padding)
    plan = make_cp_plan(bounds, size, padding=padding, node_size=node_size)
    crossing = by_node(plan) if plan.node_size else direct(plan, node_size)
    return {
        "MindSpeed, single": mindspeed(tokens, size, node_size, 1).megabytes(BF16),
        "MindSpeed, double": mindspeed(tokens, size, node_size, window).megabytes(BF16),
        "direct": direct(flat, node_size).megabytes(FP32),
        "by node": crossing.megabytes(FP32),
        "by node, bf16 gradients": crossing.megabytes(BF16),
    }


def ratios(found: dict[str, np.ndarray]) -> tuple[float, float]:
    """All nodes of "by node" over all nodes of MindSpeed's better ring, and the busiest over its busiest. NaN where nothing crosses."""
    theirs = min((found["MindSpeed, single"], found["MindSpeed, double"]), key=np.sum)
    ours = found["by node"]
    return (float(ours.sum() / theirs.sum()), float(ours.max() / theirs.max())) if theirs.any() else (np.nan, np.nan)


def main() -> None:
    """Prints one table."""
    from plan import make_packs  # of this folder, where only scripts look

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=int, default=10)
    count = parser.parse_args().packs
    schemes = ("MindSpeed, single", "MindSpeed, double", "direct", "by node", "by node, bf16 gradients")
    print(f"| documents | cp | ranks of a node | {' | '.join(schemes)} | by node / MindSpeed | busiest |\n|{'---|' * (5 + len(schemes))}")
    for name, packs in (("one", [(np.array([0, TOKENS]), 0)]), ("of the mixture, resets on", make_packs(STAGE, TOKENS, count))):
        for size, node_size in product(CP_SIZES, NODE_SIZES):
            found = [rows_of_table(bounds, padding, size, node_size) for bounds, padding in packs]
            means = {scheme: np.mean([pack[scheme] for pack in found], axis=0) for scheme in schemes}
            sizes = " | ".join(f"{means[scheme].mean():,.0f}" for scheme in schemes)
            print(f"| {name} | {size} | {node_size} | {sizes} | {' | '.join(f'{ratio:.2f}' for ratio in ratios(means))} |", flush=True)


if __name__ == "__main__":
    main()
