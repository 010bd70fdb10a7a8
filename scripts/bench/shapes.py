"""Distinct shapes that one NPU's kernels meet over a run's steps, counted on packs of the training mixture. Nothing is computed.

CANN prepares a kernel once for each operator, shapes and lists of integers, and keeps ACLNN_CACHE_LIMIT of them. Counted are, for the first
tensor-parallel rank of the first context-parallel rank: the attention calls (their lists of lengths), supervised rows as they are and in
buckets, tiles, and vision rows that arrive. Lengths are those of length_mix.py; all of a sample's text but 20 tokens counts as supervised.
    python scripts/bench/shapes.py [--steps 1000] [--cases 0,1,2,3]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

with packages_needed():
    import numpy as np
    import torch
    from length_mix import TOKENS_PER_TILE
    from plan import draw_packs

    from mindspeed_vita.ops.attention.blocks import pack_segments
    from mindspeed_vita.ops.shape_buckets import bucketed_rows
    from mindspeed_vita.sharding import index, make_cp_plan, tile_owner, tile_routes

CASES = (
    ("stage 2", 2, 16384, 8, 1, 8, 528, True),
    ("stage 3", 3, 131072, 8, 2, 4, 64, False),
    ("stage 3, isolated", 3, 131072, 8, 2, 4, 64, True),
    ("stage 4", 4, 1048576, 8, 8, 1, 8, False),
)
"""Name, stage of the mixture, tokens a pack, tp, cp, dp, packs a step, resets: 14B's layouts of the paper."""
QUESTION = 20
"""Tokens of a sample's text that are not supervised."""


def count(stage: int, capacity: int, tp: int, cp: int, packs: int, resets: bool) -> tuple[int, dict[str, int]]:
    """(packs counted, distinct shapes by kind)."""
    seen: dict[str, set[object]] = {kind: set() for kind in ("attention calls", "supervised rows", "in buckets", "tiles", "vision rows")}
    drawn = draw_packs(stage, capacity, packs)
    cpu = torch.device("cpu")
    for tokens, tiles in drawn:
        starts = np.concatenate([[0], np.cumsum(tokens)])
        padding = capacity - int(starts[-1])
        bounds = starts if resets else starts[[0, -1]]
        cp_plan = make_cp_plan(np.append(bounds, capacity) if padding else bounds, cp, padding=padding)
        steps = cp_plan.steps(0)
        for number, segments in enumerate([steps.diagonal_segments, *(step.segments for step in steps.ring)]):
            for packed in pack_segments(segments, cpu) if len(segments) else ():
                seen["attention calls"].add((number == 0, packed.query_ends, packed.key_ends))
        supervised = np.zeros(capacity, dtype=bool)
        for start, stop, number in zip(starts, starts[1:], tiles):
            supervised[start + number * TOKENS_PER_TILE + QUESTION : stop - 1] = True
        own = torch.from_numpy(supervised[index(cp_plan, 0)])
        seen["supervised rows"].add(int(own.sum()))
        seen["in buckets"].add(len(bucketed_rows(own, "npu")))
        seen["tiles"].add(len(tile_owner(int(tiles.sum()), tp * cp)[0]))
        first = np.concatenate([start + 1 + TOKENS_PER_TILE * np.arange(number) for start, number in zip(starts, tiles)])
        seen["vision rows"].add(len(tile_routes(cp_plan, first, TOKENS_PER_TILE - 2, tp, 0).targets))
    return len(drawn), {kind: len(shapes) for kind, shapes in seen.items()}


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--cases", default="0,1,2,3", help="by comma")
    arguments = parser.parse_args()
    print("| run | tp x cp, dp | steps | packs | attention calls | supervised rows | in buckets | tiles | vision rows |")
    print("|---|---|---|---|---|---|---|---|---|")
    for number in map(int, arguments.cases.split(",")):
        name, stage, capacity, tp, cp, dp, batch, resets = CASES[number]
        packs, shapes = count(stage, capacity, tp, cp, arguments.steps * batch // dp, resets)
        row = " | ".join(f"{value:,}" for value in shapes.values())
        print(f"| {name}, {capacity:,} tokens | {tp} x {cp}, {dp} | {arguments.steps:,} | {packs:,} | {row} |", flush=True)


if __name__ == "__main__":
    main()
