"""How unlike consecutive micro-batches of a pipeline are, with and without train.even_steps, on the training mixture's lengths.

    OMP_NUM_THREADS=1 python scripts/bench/micro_batches.py [--samples 300000]

Packs are planned as in training and dealt to 4 data-parallel ranks. The ratio is the work of the dearer over that of the cheaper of two
micro-batches that follow each other on a rank within a step. Work is attention, linear layers and tiles of the 14B model. The last
column is the step's time in a pipeline of 8 stages that wait for each other (1F1B), over that of micro-batches of equal work.
Simulated: no device is used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

with packages_needed():
    import numpy as np
    from length_mix import draw

    from mindspeed_vita.config import recipe_from_dict
    from mindspeed_vita.data.dealing import StepOrder, deal, relative_work
    from mindspeed_vita.data.packing import plan_packs
    from mindspeed_vita.data.plan_file import measure_packs

CASES = ((2, 16_384, 528, True), (3, 131_072, 64, True), (3, 131_072, 64, False))
"""Stage of the mixture, tokens a pack, packs a step, resets."""
WINDOWS = (0, 4, 16)
RANKS, STAGES = 4, 8
WORK = relative_work(recipe_from_dict({"model": {"preset": "14b"}}).model)


def step_time(work: np.ndarray) -> float:
    """Time of one step's micro-batches in a pipeline, whose stages do one forward and one backward pass in turn (1F1B).

    Args:
        work: float[n] of the micro-batches; a forward pass of a stage takes that long, a backward pass twice as long.
    """
    count = len(work)
    forward, backward = np.zeros((STAGES, count)), np.zeros((STAGES, count))
    orders = []
    for stage in range(STAGES):
        warm = min(STAGES - 1 - stage, count)
        order = [("f", number) for number in range(warm)]
        for number in range(count - warm):
            order += [("f", warm + number), ("b", number)]
        orders.append(order + [("b", number) for number in range(count - warm, count)])
    free, at, left = np.zeros(STAGES), [0] * STAGES, sum(map(len, orders))
    while left:
        for stage in range(STAGES):
            while at[stage] < len(orders[stage]):
                kind, number = orders[stage][at[stage]]
                if kind == "f":
                    ready = forward[stage - 1, number] if stage else 1e-9
                else:
                    ready = backward[stage + 1, number] if stage < STAGES - 1 else forward[stage, number]
                if not ready:
                    break
                free[stage] = max(free[stage], ready) + work[number] * (1 if kind == "f" else 2)
                (forward if kind == "f" else backward)[stage, number] = free[stage]
                at[stage] += 1
                left -= 1
    return float(free.max())


def measure(costs: np.ndarray, batch: int, span: int, window: int) -> tuple[np.ndarray, float]:
    """Ratios of consecutive micro-batches in whole spans of packs, and the mean step's time over that of equal micro-batches."""
    ratios, times = [], []
    order = StepOrder(lambda numbers: costs[list(numbers)], global_batch=batch, window=window, seed=1234)
    for first in range(0, len(costs) // span * span, batch):
        numbers = np.array(order.packs(first))
        for own in deal(costs[numbers], RANKS):
            work = costs[numbers[own]]
            ratios.append(np.maximum(work[1:], work[:-1]) / np.minimum(work[1:], work[:-1]))
            if len(times) < 200:
                times.append(step_time(work) / step_time(np.full(len(work), work.mean())))
    return np.concatenate(ratios), float(np.mean(times))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=300_000)
    arguments = parser.parse_args()
    print("| tokens | resets | packs a step | even_steps | mean ratio | 95 % below | pairs within 1.05 | step / even step |")
    print("|---|---|---|---|---|---|---|---|")
    for stage, capacity, batch, resets in CASES:
        sources, lengths, tiles = draw(stage, arguments.samples)
        fitted = np.minimum(lengths, capacity)
        mode = "same_source" if stage == 2 else "cross_source"
        plan = measure_packs(plan_packs(fitted, sources, capacity=capacity, mode=mode, seed=0, epoch=0), fitted, tiles)
        attention = plan.squares if resets else plan.tokens.astype(float) ** 2
        costs = capacity + WORK.attention * attention + WORK.tile * plan.tiles
        span = batch * max(WINDOWS)
        if len(costs) < span:
            raise SystemExit(f"{len(costs)} packs of {capacity:,} tokens; {span} are needed, so use more --samples")
        for window in WINDOWS:
            ratios, time = measure(costs, batch, span, window)
            row = f"{np.mean(ratios):.3f} | {np.quantile(ratios, 0.95):.3f} | {np.mean(ratios <= 1.05):.1%} | {time:.3f}"
            print(f"| {capacity:,} | {'on' if resets else 'off'} | {batch} | {window} | {row} |", flush=True)


if __name__ == "__main__":
    main()
