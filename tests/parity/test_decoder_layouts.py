"""A decoder with a norm over each head's queries and keys, and heads of a width of their own, trains alike under every layout.

The tolerances are those of checks/parity/check.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mindspeed_vita.checks.parity.check import RUN, compare
from mindspeed_vita.checks.parity.pool import LayoutPool

LANGUAGE = {"family": "qwen3", "head_width": 24}
SHARED: dict[str, Any] = {"head": "masked", "modules": ("vision", "projector", "language"), "language": LANGUAGE}
RUNS = [
    pytest.param((2, 1, 1, 1), True, {}, id="tp2"),
    pytest.param((1, 1, 2, 1), True, {}, id="ring2"),
    pytest.param((1, 1, 2, 1), False, {"ulysses": 2}, id="ulysses2-no-resets"),
    pytest.param((2, 1, 2, 1), False, {"recompute": "full"}, id="tp2-ring2-no-resets-recomputed"),
    pytest.param((2, 2, 1, 1), True, {"recompute": "selective"}, id="tp2-pp2-attention-recomputed"),
    pytest.param((1, 1, 4, 1), True, {"ulysses": 2, "recompute": "full"}, id="ring2-ulysses2-recomputed"),
]


@pytest.fixture(scope="module")
def reference(layout_pool: LayoutPool, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Weights, and one process's step with them, samples isolated or not."""
    full = layout_pool.run("mindspeed_vita.checks.parity.step:initial_weights", language=LANGUAGE)[0]
    norms = [name for name in full if "self_attention.q_layernorm" in name or "self_attention.k_layernorm" in name]
    assert len(norms) == 8 and all(full[name].shape == (24,) for name in norms)
    assert not any("decoder" in name and name.endswith("bias") for name in full)
    folder = str(tmp_path_factory.mktemp("reference"))
    return full, {resets: layout_pool.run(RUN, folder=folder, full=full, resets=resets, **SHARED)[0] for resets in (True, False)}


@pytest.mark.parametrize(("layout", "resets", "extra"), RUNS)
def test_a_layout_equals_one_process(
    layout_pool: LayoutPool, reference: Any, layout: tuple[int, ...], resets: bool, extra: dict[str, Any], tmp_path: Path
) -> None:
    full, expected = reference
    found = layout_pool.run(RUN, *layout, folder=str(tmp_path), full=full, resets=resets, **SHARED, **extra)[0]
    result = compare(found, expected[resets])
    assert result.equal, result
