"""One rank of each kind of pipeline stage of every full-size recipe runs its step: real widths, lengths, worlds and tiles, few layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindspeed_vita.config import load_recipe
from tests.unit.planner.traces import ROOT, stages

RECIPES = sorted(ROOT.glob("examples/long_vita_*/stage*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_stage_of_a_recipe_runs_its_step(path: Path, elsewhere, monkeypatch: pytest.MonkeyPatch):
    for name in ("DATA_ROOT", "TOKENIZER", "BASE_WEIGHTS", "INIT_FROM", "OUTPUT_ROOT"):
        monkeypatch.setenv(name, "somewhere")
    recipe = load_recipe(path)
    layout, world = recipe.parallel, recipe.parallel.tp * recipe.parallel.pp * recipe.parallel.cp
    found = elsewhere(stages, recipe)
    assert set(found) == ({"all"} if layout.pp == 1 else {"first", "middle", "last"})
    for kind, traced in found.items():
        assert traced.peak > traced.held > 0
        work = traced.flops()
        # a frozen language model behind a projector that learns still passes gradients on
        assert work["forward"] > 0 and work["backward"] > 0
        assert ("recompute" in work) == (recipe.train.recompute == "full")
        sent = {(sent.name, sent.group, sent.group_size) for sent in traced.sent}
        assert ("all_gather", "tp", layout.tp) in sent and ("reduce_scatter", "tp", layout.tp) in sent
        # isolated samples of an eighth of the pack each stay on one rank
        assert (("send", "cp", layout.cp) in sent) == (layout.cp > 1 and not recipe.data.resets)
        assert (("send", "pp", layout.pp) in sent) == (layout.pp > 1)
        first = kind in ("all", "first")
        assert any(name == "all_to_all" and size == layout.tp * layout.cp for name, _, size in sent) == first, (kind, world)
        assert any(place.part == "head" for place, _ in traced.work) == (kind in ("all", "last"))
