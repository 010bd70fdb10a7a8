"""Compares traces with torch's allocator and with a count of work by hand, on the layouts of the proof, and prints a table.

OMP_NUM_THREADS=1 python -m scripts.bench.planner [WORDS]

WORDS: only layouts whose description contains them, such as "recompute" or "tp 2".
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

os.environ.setdefault("DEVICE", "cpu")


def main() -> int:
    """Prints a row per layout and rank; 1 where a peak is off by more than the tolerance, or work is not the count."""
    with packages_needed():
        import torch

        from mindspeed_vita.planner.hand_count import counted_work, work_of
        from mindspeed_vita.planner.proof import CASES, CONTENT, TOLERANCE, measure_case, off_by, peak_of_a_cpu, proof_recipe
        from mindspeed_vita.planner.trace.step import trace

    torch.set_num_threads(1)
    words = " ".join(sys.argv[1:])
    chosen = [(case, rank) for case in CASES for rank in sorted({0, case.world - 1}) if words in case.describe()]
    if not chosen:
        print(f"no layout contains {words!r}; there are: {'; '.join(case.describe() for case in CASES)}", file=sys.stderr)
        return 2
    # traces leave tensors without memory in caches: so all measurements come first
    measured = [measure_case(case, "mid", rank) for case, rank in chosen]
    columns = ("layout", "rank", "allocator", "traced", "peak off by", "the step's own part off by", "work by hand, GFLOP", "traced")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    worst, miscounted = 0.0, 0
    for (case, rank), real in zip(chosen, measured):
        recipe = proof_recipe(case, "mid")
        found = trace(recipe, case.world, rank, content=CONTENT)
        peak = peak_of_a_cpu(found)
        whole, step = off_by(peak, real.peak), off_by(peak - found.held, real.peak - real.held)
        worst = max(worst, abs(whole))
        counted, traced = counted_work(recipe, case.world, rank, CONTENT), work_of(found)
        miscounted += counted != traced
        sizes = f"{real.peak / 2**20:.1f} | {peak / 2**20:.1f} | {whole:+.2%} | {step:+.2%}"
        works = f"{sum(counted.values()) / 1e9:,.3f} | {sum(traced.values()) / 1e9:,.3f}{'' if counted == traced else ' (NOT EQUAL)'}"
        print(f"| {case.describe()} | {rank} | {sizes} | {works} |", flush=True)
    print(f"worst: {worst:.2%} of the peak (at most {TOLERANCE:.0%}); work by part and phase differs in {miscounted} of {len(chosen)} rows")
    return int(worst > TOLERANCE or miscounted > 0)


if __name__ == "__main__":
    sys.exit(main())
