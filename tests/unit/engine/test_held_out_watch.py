"""When a run measures, which step is its best one, and when it stops."""

from __future__ import annotations

import math

import pytest

from mindspeed_vita.config import recipe_from_dict
from mindspeed_vita.engine.held_out_watch import PACKS, HeldOutWatch


def watch(lines=(), **told) -> HeldOutWatch:
    return HeldOutWatch(recipe_from_dict({"train": {"steps": 10}, "eval": {"mixture": "m", "every": 4, **told}}), "packs", lines)


def measured(losses, **told) -> HeldOutWatch:
    found = watch(**told)
    for number, loss in enumerate(losses):
        found.add(4 * number, loss)
    return found


def test_the_start_every_fourth_step_and_the_last_one_are_due_once():
    assert [step for step in range(11) if watch().due(step)] == [0, 4, 8, 10]
    assert [step for step in range(11) if watch(at_start=False).due(step)] == [4, 8, 10]
    found = watch()
    found.add(4, 1.0)
    assert not found.due(4)


def test_lines_of_other_packs_do_not_count():
    lines = [{"step": 4, "eval/loss": 1.0, PACKS: "packs"}, {"step": 8, "eval/loss": 0.5, PACKS: "others"}, {"step": 9, "loss": 2.0}]
    assert watch(lines).losses == {4: 1.0} and watch(lines).due(8)


@pytest.mark.parametrize(
    ("losses", "best"),
    [([0.1], None), ([0.1, 3.0, 2.0, 2.0], 8), ([9.0, 1.0, 2.0], 4), ([9.0, math.nan, 2.0], 8), ([9.0, math.nan], None)],
)
def test_the_best_step_is_the_first_lowest_one_behind_the_start(losses, best):
    assert measured(losses).best == best


@pytest.mark.parametrize(
    ("losses", "patience", "exhausted"),
    [
        ([9.0, 1.0, 2.0], 0, False),
        ([9.0, 1.0, 2.0], 2, False),
        ([9.0, 1.0, 2.0, 1.0], 2, True),
        ([9.0, 1.0, 2.0, 0.9], 2, False),
        ([9.0, 1.0, 2.0, 0.9, 1.0, 1.0], 2, True),
        ([0.1, 1.0], 1, False),
        ([9.0, math.nan, math.nan], 2, True),
        ([9.0], 1, False),
    ],
)
def test_patience_counts_evaluations_behind_the_best_one(losses, patience, exhausted):
    assert measured(losses, patience=patience).exhausted == exhausted


def test_only_a_lower_loss_is_a_new_best():
    found = watch()
    assert [found.add(step, loss) for step, loss in ((0, 1.0), (4, 2.0), (8, 2.0), (10, 1.9))] == [False, True, False, True]


def test_a_gate_needs_a_bound():
    assert measured([9.0, 1.0]).gate(4) is None
    gate = measured([9.0, 1.0], gate=0.5).gate(4)
    assert gate is not None and gate.held and (gate.measured, gate.bound) == (1.0, 0.5)
