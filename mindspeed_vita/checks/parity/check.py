"""Compares layouts with one process, on whatever devices this machine has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable

import torch

from mindspeed_vita.checks.parity.pool import LayoutPool
from mindspeed_vita.choices import VISION_PARALLELS
from mindspeed_vita.config import MODULES

RUN = "mindspeed_vita.checks.parity.step:loss_and_gradients"
LAYOUTS = ((2, 1, 1, 1), (1, 2, 1, 1), (1, 1, 2, 1), (1, 1, 1, 2), (2, 1, 2, 1), (2, 2, 1, 1), (1, 2, 2, 1), (1, 1, 4, 1))
"""(tp, pp, cp, dp), each axis alone and their products."""
CASES = [(layout, vision) for layout in LAYOUTS for vision in VISION_PARALLELS if vision == "balanced" or layout[0] > 1]
"""Layouts, and how their ranks share the tower (ParallelConfig.vision_parallel)."""
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-6, 2e-5
"""Relative, and relative to each gradient's largest entry: fp32 sums in another order. Worst seen on a CPU: 5e-8 and 9e-6."""

Step = tuple[float, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Comparison:
    """How far a layout's step is from one process's."""

    loss: float
    """Relative error of the loss."""
    gradient: float
    """Largest error of a gradient, relative to that gradient's largest entry."""
    parameter: str
    """The parameter with that error."""

    @property
    def equal(self) -> bool:
        """Within what another order of summation explains."""
        return self.loss <= LOSS_TOLERANCE and self.gradient <= GRADIENT_TOLERANCE


def compare(found: Step, expected: Step) -> Comparison:
    """Loss and every gradient of two steps.

    Raises:
        ValueError: the steps have gradients of different parameters, or an expected gradient is zero or not finite, so it would
            show nothing.
    """
    if set(found[1]) != set(expected[1]):
        raise ValueError(f"gradients of different parameters: {sorted(set(found[1]) ^ set(expected[1]))[:5]}")
    errors = {}
    for name, wanted in expected[1].items():
        largest = float(wanted.abs().max())
        if not 0 < largest < math.inf:
            raise ValueError(f"{name} has no finite gradient (largest entry {largest}), so comparing it would show nothing")
        error = float((found[1][name] - wanted).abs().max()) / largest
        errors[name] = math.inf if math.isnan(error) else error
    worst = max(errors, key=lambda name: errors[name])
    loss = abs(found[0] - expected[0]) / abs(expected[0])
    return Comparison(math.inf if math.isnan(loss) else loss, errors[worst], worst)


def initial_weights(pool: LayoutPool, **settings: Any) -> dict[str, torch.Tensor]:
    """Full weights that every layout starts from; settings of the model as step.initial_weights takes them."""
    return pool.run("mindspeed_vita.checks.parity.step:initial_weights", **settings)[0]


def check_layouts(processes: int, folder: str, report: Callable[[str], None]) -> bool:
    """Runs every layout that fits a number of processes, with and without resets, with both ways to share the tower; reports a line each.

    Args:
        processes: largest world size to try.
        folder: scratch folder.
        report: takes each line.

    Returns:
        whether all are equal to one process.

    Raises:
        ValueError: not a single layout fits, so nothing would be compared.
    """
    if processes < 2:
        raise ValueError(f"{processes} process fits here, so there is no layout to compare with it; use DEVICE=cpu, or more devices")
    pool = LayoutPool(processes)
    try:
        weights = initial_weights(pool)
        all_equal = True
        for resets in (True, False):
            arguments: dict[str, Any] = {"folder": folder, "full": weights, "resets": resets, "head": "masked", "modules": MODULES}
            expected = pool.run(RUN, **arguments)[0]
            for (tp, pp, cp, dp), vision in CASES:
                name = f"tp {tp} pp {pp} cp {cp} dp {dp}  resets {'on ' if resets else 'off'}  tower {vision:8}"
                if tp * pp * cp * dp > processes:
                    report(f"{name}  not run: needs {tp * pp * cp * dp} processes, {processes} fit here")
                    continue
                result = compare(pool.run(RUN, tp, pp, cp, dp, vision_parallel=vision, **arguments)[0], expected)
                all_equal &= result.equal
                verdict = "PASS" if result.equal else f"FAIL ({result.parameter})"
                report(f"{name}  loss off by {result.loss:.1e}, gradients by at most {result.gradient:.1e} of their absmax  {verdict}")
        return all_equal
    finally:
        pool.close()
