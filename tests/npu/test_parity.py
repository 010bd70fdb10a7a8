"""One step of the hard packs on simulated NPUs has the CPU's loss and gradients, under every kind of layout.

Gradients show what a loss hides: statistics read in the wrong order moved a loss by 1e-5 and gradients by 0.7.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mindspeed_vita.checks.parity.check import RUN, compare
from mindspeed_vita.checks.parity.pool import LayoutPool
from mindspeed_vita.checks.parity.step import initial_weights, loss_and_gradients
from mindspeed_vita.config import MODULES, recipe_from_dict
from mindspeed_vita.engine.session import distributed
from mindspeed_vita.platform import get_platform

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
LAYOUTS = [(1, 1, 1, 1), (2, 1, 1, 1), (1, 2, 1, 1), (1, 1, 2, 1), (2, 1, 2, 1), (1, 1, 4, 1), (1, 1, 4, 2)]
"""(tp, pp, cp, ulysses)"""


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments of a step, and its loss and gradients on a CPU."""
    with distributed(recipe_from_dict({}), get_platform()) as layout:
        arguments = {"full": initial_weights(layout), "resets": True, "head": "masked", "modules": MODULES}
        arguments["folder"] = str(tmp_path_factory.mktemp("cpu"))
        return {"arguments": arguments, "expected": loss_and_gradients(layout, **arguments)}


@pytest.mark.parametrize(("tp", "pp", "cp", "ulysses"), LAYOUTS)
def test_a_step_has_the_cpus_gradients(
    npus: LayoutPool, on_the_cpu: dict[str, Any], tmp_path: Path, tp: int, pp: int, cp: int, ulysses: int
) -> None:
    arguments = {**on_the_cpu["arguments"], "folder": str(tmp_path), "ulysses": ulysses}
    found = npus.run(RUN, tp=tp, pp=pp, cp=cp, **arguments)[0]
    assert all(isinstance(gradient, torch.Tensor) for gradient in found[1].values())
    result = compare(found, on_the_cpu["expected"])
    assert result.equal, result


@pytest.mark.parametrize(
    ("cp", "train"),
    [
        (1, {"recompute": "full", "offload": "inputs"}),
        (2, {"recompute": "full_but_attention", "offload": "inputs"}),
        (1, {"recompute": "mlp"}),
    ],
)
def test_recomputation_has_the_cpus_gradients(
    npus: LayoutPool, on_the_cpu: dict[str, Any], tmp_path: Path, cp: int, train: dict[str, Any]
) -> None:
    """Statistics are kept as the fused kernel returns them, and layer inputs come back through pinned memory and a stream of their own.

    What the stream does meanwhile is not simulated: copies happen at once.
    """
    arguments = {**on_the_cpu["arguments"], "folder": str(tmp_path), "train": train}
    result = compare(npus.run(RUN, cp=cp, **arguments)[0], on_the_cpu["expected"])
    assert result.equal, result
