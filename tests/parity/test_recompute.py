"""What is recomputed changes no bit of the loss and of any gradient, and attention runs as often as the mode says.

Counts matter as much as gradients: a mode that never finds what was kept gives equal gradients too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mindspeed_vita.checks.parity.check import initial_weights
from mindspeed_vita.checks.parity.packs import MODEL
from mindspeed_vita.checks.parity.pool import LayoutPool
from tests.parity.recompute_runs import MODES

ALL = ("vision", "projector", "language")
ATTENTION = ("none", "full", "full_but_attention")
"""Modes that differ in how attention is called."""
RUNS = [
    pytest.param((1, 1, 1, 1), ALL, 1, tuple(MODES), id="one-process"),
    pytest.param((2, 1, 1, 1), ALL, 1, tuple(MODES), id="tp2"),
    pytest.param((1, 1, 2, 1), ALL, 1, ATTENTION, id="cp2"),
    pytest.param((1, 2, 2, 1), ALL, 1, tuple(MODES), id="pp2-cp2"),
    pytest.param((1, 1, 4, 1), ALL, 2, ATTENTION, id="ring2-ulysses2"),
    pytest.param((1, 2, 1, 1), ("projector",), 1, tuple(MODES), id="pp2-projector-alone"),
    pytest.param((1, 1, 2, 1), ("language",), 1, ATTENTION, id="cp2-language-alone"),
]
LAYERS, PACKS = MODEL["language"]["num_layers"], 4
AGAIN = {"full": LAYERS, "full, offloaded": LAYERS, "full in 1": 1}
"""Layers of one stage of them all whose attention is computed again."""


@pytest.fixture(scope="module")
def weights(layout_pool: LayoutPool) -> dict[str, torch.Tensor]:
    return initial_weights(layout_pool)


def arguments(folder: Path, weights: dict[str, torch.Tensor], modules: tuple[str, ...] = ALL, ulysses: int = 1) -> dict[str, Any]:
    return {"folder": str(folder), "full": weights, "resets": True, "head": "masked", "modules": modules, "ulysses": ulysses}


def gradients_equal(found: Any, expected: Any) -> bool:
    assert found[1].keys() == expected[1].keys() and all(float(gradient.abs().max()) > 0 for gradient in expected[1].values())
    return all(torch.equal(found[1][name], gradient) for name, gradient in expected[1].items())


@pytest.mark.parametrize(("layout", "modules", "ulysses", "modes"), RUNS)
def test_every_mode_has_the_same_bits_and_its_own_calls(
    layout_pool: LayoutPool,
    weights: dict[str, torch.Tensor],
    tmp_path: Path,
    layout: tuple[int, ...],
    modules: tuple[str, ...],
    ulysses: int,
    modes: tuple[str, ...],
) -> None:
    ranks = layout_pool.run("tests.parity.recompute_runs:steps", *layout, modes=modes, **arguments(tmp_path, weights, modules, ulysses))
    expected = ranks[0]["none"]["found"]
    for mode in modes:
        found = ranks[0][mode]["found"]
        assert found[0] == expected[0], mode
        assert gradients_equal(found, expected), mode
    for number, rank in enumerate(ranks):
        check_calls({mode: rank[mode]["calls"] for mode in modes}, layers=LAYERS // layout[1])
        kept = rank["full_but_attention"]
        assert kept["calls"]["kept"] == kept["calls"]["taken"] == PACKS * LAYERS // layout[1] and kept["calls"]["now"] == 0
        in_flight = layout[1] - number * layout[1] // len(ranks)  # packs of a stage between their two passes
        assert kept["calls"]["most"] == in_flight * kept["a pack keeps"] > 0
        assert not any("kept" in rank[mode]["calls"] for mode in modes if not mode.startswith("full_but_attention"))


def check_calls(calls: dict[str, dict[str, int]], layers: int) -> None:
    """Calls of attention's forward kernels and transfers of the ring, by mode, on a rank with this many layers."""
    once, sent = calls["none"]["blocks_forward"], calls["none"].get("swap", 0)
    for mode, found in calls.items():
        share = min(AGAIN.get(mode, 0), layers) / layers
        assert found["blocks_forward"] == once * (1 + share), mode
        assert found["blocks_backward"] == once, mode
        # keys travel in both passes, and gradients return: a third of all is the forward pass's
        assert found.get("swap", 0) == sent * (1 + share / 3), mode


def test_a_wrong_result_that_is_kept_shows_in_gradients_alone(
    layout_pool: LayoutPool, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    told = arguments(tmp_path, weights)
    modes = {
        "the kept output is off": "full_but_attention",
        "the kept log-sum-exp is off": "full_but_attention",
        "a layer keeps one result for all micro-batches": "full_but_attention",
        "another layer's input comes back": "full, offloaded",
    }
    run = layout_pool.run("tests.parity.recompute_runs:steps", pp=2, modes=("none",), **told)[0]
    expected = run["none"]["found"]
    for name, mutant in layout_pool.run("tests.parity.recompute_runs:mutants", pp=2, modes=modes, **told)[0].items():
        assert mutant["found"][0] == expected[0], name
        assert not gradients_equal(mutant["found"], expected), name
