"""Compares traces with torch's allocator on the layouts of the proof, and prints a table.

OMP_NUM_THREADS=1 python -m scripts.bench.planner
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

os.environ.setdefault("DEVICE", "cpu")


def main() -> int:
    """Prints a row per layout and rank; 1 where a trace is off by more than the tolerance."""
    with packages_needed():
        import torch

        from mindspeed_vita.planner.proof import CASES, CONTENT, TOLERANCE, measure_case, off_by, proof_recipe
        from mindspeed_vita.planner.trace.step import trace

    torch.set_num_threads(1)
    chosen = [(case, rank) for case in CASES for rank in sorted({0, case.world - 1})]
    # traces leave tensors without memory in caches: so all measurements come first
    measured = [measure_case(case, "mid", rank) for case, rank in chosen]
    print("| layout | rank | measured peak, MiB | traced | peak off by | the step's own part off by |\n|---|---|---|---|---|---|")
    worst = 0.0
    for (case, rank), real in zip(chosen, measured):
        found = trace(proof_recipe(case, "mid"), case.world, rank, content=CONTENT)
        whole, step = off_by(found.peak, real.peak), off_by(found.peak - found.held, real.peak - real.held)
        worst = max(worst, abs(whole))
        sizes = f"{real.peak / 2**20:.1f} | {found.peak / 2**20:.1f}"
        print(f"| {case.describe()} | {rank} | {sizes} | {whole:+.2%} | {step:+.2%} |", flush=True)
    print(f"worst: {worst:.2%} of the peak (at most {TOLERANCE:.0%})")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
