"""The native decoder equals transformers' own with the same weights: Qwen2ForCausalLM, Qwen3ForCausalLM and LlamaForCausalLM."""

from __future__ import annotations

import pytest

from mindspeed_vita.checks.parity.pool import LayoutPool
from tests.parity.language_runs import CASES, SIZES

# Measured: loss 2e-7, logits 1e-6, gradients 3e-6 of their absmax (fp32 summation order).
TOLERANCE = 1e-5


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_loss_logits_and_every_gradient_equal_transformers_to_1e5(layout_pool: LayoutPool, case: str, tp: int) -> None:
    recompute = "full" if tp == 2 else "none"
    for found in layout_pool.run("tests.parity.language_runs:run", tp, case=case, recompute=recompute):
        assert found["loss"] <= TOLERANCE and found["logits"] <= TOLERANCE, found
        worst = max(found["gradients"], key=found["gradients"].get)
        assert found["gradients"][worst] <= TOLERANCE, (worst, found["gradients"][worst])
        layers = SIZES["num_layers"]
        assert found["norms"] == (2 * layers if "qwen3" in case else 0)
        assert found["biases"] == {"qwen2": layers, "qwen2-tied": layers, "every-bias": 2 * layers}.get(case, 0)
