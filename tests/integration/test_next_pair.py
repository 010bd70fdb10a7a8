"""The next pair, MindSpeed core_r0.16.0 with Megatron-LM core_v0.16.1: model and ring train the built-in engine's curve there.

VITA_UPSTREAM_NEXT names a folder with the two checkouts and, in `site`, what MindSpeed imports there in addition. The guide
docs/guides/next_mindspeed_llm.md says how to make it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mindspeed_vita.config import Recipe
from tests.integration.conftest import save_fresh_weights
from tests.integration.mindspeed_run import MindSpeed
from tests.tiny_data import TinyData, read_metrics, tiny  # noqa: F401 - a fixture

PAIR = ("MindSpeed", "Megatron-LM")
SCRIPT = Path(__file__).with_name("next_pair.py")
STEPS = 6
LOSS = 1e-6


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> MindSpeed:
    """Starts runs on the pair; skips, with the reason, where it is not there."""
    folder = os.environ.get("VITA_UPSTREAM_NEXT")
    if not folder:
        pytest.skip(f"VITA_UPSTREAM_NEXT is not set: it names a folder with {', '.join(PAIR)} and site")
    missing = [name for name in PAIR if not (Path(folder) / name).is_dir()]
    if missing:
        pytest.skip(f"VITA_UPSTREAM_NEXT={folder} lacks {', '.join(missing)}")
    return MindSpeed(Path(folder), tmp_path_factory.mktemp("next_pair"), projects=(*PAIR, "site"), script=SCRIPT)


@pytest.fixture(scope="module")
def recipe(pair: MindSpeed, tiny: TinyData) -> Any:  # noqa: F811 - the fixture above
    """Makes recipes that start from common weights: recipe("name", parallel={...})."""
    weights = save_fresh_weights(tiny.recipe(pair.folder / "weights"), pair.folder / "weights")

    def make(name: str, **sections: Any) -> Recipe:
        return tiny.recipe(pair.folder / name, train={"steps": STEPS}, checkpoint={"init_from": str(weights)}, **sections)

    return make


@pytest.fixture(scope="module")
def curve(recipe: Any) -> list[float]:
    """The built-in engine's losses."""
    from mindspeed_vita.engine.loop import train

    own = recipe("built_in")
    train(own)
    return read_metrics(Path(own.checkpoint.directory))


@pytest.mark.parametrize("parallel", [{}, {"tp": 2}, {"cp": 2}, {"pp": 2}], ids=["one_rank", "tp2", "cp2", "pp2"])
def test_a_layout_trains_the_built_in_engines_curve(pair: MindSpeed, recipe: Any, curve: list[float], parallel: dict[str, int]):
    name = "".join(f"{axis}{size}" for axis, size in parallel.items()) or "one_rank"
    told = recipe(name, parallel=parallel)
    printed = pair.train(told, max(parallel.values(), default=1), name)
    assert printed.status == 0, printed.text[-3000:]
    # Megatron 0.16.1 prints the mean of the first two steps as the second one's loss; metrics.jsonl has each step's own
    found = read_metrics(Path(told.checkpoint.directory))
    assert len(curve) == STEPS and found == pytest.approx(curve, rel=LOSS)


def test_mindspeed_llm_has_no_branch_for_the_pair_yet(pair: MindSpeed):
    """Ends when it has one: then the ledger moves, as the guide says."""
    checkout = Path(os.environ.get("VITA_UPSTREAM", "")) / "MindSpeed-LLM"
    if not os.environ.get("VITA_UPSTREAM"):
        pytest.skip("VITA_UPSTREAM is not set: it names a folder with MindSpeed-LLM")
    environment = pair.environment()
    environment["PYTHONPATH"] += os.pathsep + str(checkout)
    done = subprocess.run([pair.python, "-c", "import mindspeed_llm"], capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 1
    assert "cannot import name 'NPUDataDumpFeature' from 'mindspeed.features_manager'" in done.stderr
