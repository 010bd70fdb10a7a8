"""MindIO's checkpoint after a fault, in real MindSpeed-LLM: this package's run trains under it, is saved by it and continues.

MindIO itself needs an NPU; mindio_stand_in says what stands in for it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mindspeed_vita.config import Recipe
from mindspeed_vita.integration.mindspeed_llm.arguments import arguments_from_recipe
from tests.integration.mindspeed_run import PROJECTS, MindSpeed, Printed
from tests.metrics_table import module_norms
from tests.tiny_data import TinyData

STAND_IN = Path(__file__).with_name("mindio_stand_in")
FLAG = "--enable-high-availability"
STEPS, FAULT = 6, 4
LOSS, NORM = 1e-4, 5e-3
"""bf16, as in test_mindspeed_llm.py. The optimizer adds gradients up by another collective than without MindIO."""
BREAKS = """
import os
import signal

from mindspeed_vita.integration.mindspeed_llm.step import ForwardStep

packs, call = [0], ForwardStep.__call__

def fails(self, numbers, model):
    packs[0] += self.done + 1 == {step}
    if packs[0] == 2 and os.environ["RANK"] == "1":  # in the middle of a step
        {what}
    return call(self, numbers, model)

ForwardStep.__call__ = fails
"""
FAULTS = {"killed": "os.kill(os.getpid(), signal.SIGKILL)", "failed": "raise OSError('the disk of rank 1 is gone')"}
SIGNALLED = """
import os
import signal

from mindspeed_vita.integration.mindspeed_llm.step import ForwardStep

start = ForwardStep.start_step

def signalled(self):
    start(self)
    if os.environ["RANK"] == "0" and self.done + 1 == {step}:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

ForwardStep.start_step = signalled
"""


@pytest.fixture(scope="module")
def mindio(mindspeed: MindSpeed) -> MindSpeed:
    """Runs with the stand-in on Python's path."""
    return replace(mindspeed, projects=(*PROJECTS, str(STAND_IN)))


@pytest.fixture(scope="module")
def recipe(tiny: TinyData, mindspeed: MindSpeed, weights: Path) -> Any:
    """Makes recipes of two ranks that start from common weights, with a plugin's text."""

    def make(name: str, plugin: str = "", **sections: Any) -> Recipe:
        settings = {"init_from": str(weights), "save_every": STEPS, **sections.pop("checkpoint", {})}
        told = tiny.recipe(mindspeed.folder / name, train={"steps": STEPS, "precision": "bf16"}, checkpoint=settings, **sections)
        if plugin:
            (mindspeed.folder / f"plugin_{name}.py").write_text(plugin)
        return replace(told, plugins=(f"plugin_{name}",) if plugin else ())

    return make


@pytest.fixture(scope="module")
def whole(mindspeed: MindSpeed, recipe: Any) -> Printed:
    """Without MindIO and without a fault."""
    printed = mindspeed.train(recipe("without_mindio"), 2, "without_mindio")
    assert printed.status == 0, printed.text[-3000:]
    return printed


def run_to_every_end(mindio: MindSpeed, told: Recipe, name: str) -> Printed:
    """As MindSpeed.train, but the ranks that are left after a fault end by themselves."""
    processes = mindio.start([*arguments_from_recipe(told), FLAG], 2, name)
    for process in processes:
        process.wait(timeout=300)
    return mindio.finish(processes, name)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_continues_from_what_mindio_saved_after_a_fault(mindio: MindSpeed, recipe: Any, whole: Printed, fault: str):
    name = f"mindio_{fault}"
    broken = run_to_every_end(mindio, recipe(name, BREAKS.format(step=FAULT, what=FAULTS[fault])), name)
    assert sorted(broken.losses) == list(range(1, FAULT)) and broken.status != 0, broken.text[-6000:]
    assert "fault of ranks [1]" in broken.text and broken.text.count(f"saves step {FAULT - 1} with") == 1, broken.text[-6000:]
    assert broken.text.count("vita: MindIO watches the processes") == 1
    folder = Path(recipe(name).checkpoint.directory)
    assert (folder / "latest_checkpointed_iteration.txt").read_text() == str(FAULT - 1)
    assert [path.name for path in folder.glob("iter_*")] == [f"iter_{FAULT - 1:07d}"]

    resumed = mindio.train(recipe(name, SIGNALLED.format(step=FAULT + 1)), 2, f"{name}_resumed", [FLAG])
    assert resumed.status == 75 and "ignores a signal" not in resumed.text and "the same command continues from" in resumed.text
    without = mindio.train(recipe(name), 2, f"{name}_without")
    assert sorted(resumed.losses) == [FAULT, FAULT + 1] and sorted(without.losses) == [STEPS], without.text[-3000:]
    parts = (broken, resumed, without)
    both = replace(without, losses={step: loss for part in parts for step, loss in part.losses.items()})
    what = f"bf16, dp2, MindIO, rank 1 {fault} in step {FAULT}, resumed from what MindIO saved, curve without MindIO"
    assert mindio.off_by(what, 2, both, whole.losses) <= LOSS
    assert module_norms(folder)  # each part of the optimizer has two holders, and counts once
    assert {step: norm for part in parts for step, norm in part.norms.items()} == pytest.approx(whole.norms, abs=NORM)


def test_what_mindio_does_not_fit_is_refused_in_one_line(mindio: MindSpeed, recipe: Any, monkeypatch: pytest.MonkeyPatch):
    def refused(name: str, words: str, ranks: int = 2, flags: tuple[str, ...] = ()) -> None:
        printed = mindio.train(recipe(name), ranks, name, flags)
        lines = re.findall(r"pretrain_vita: error.*", printed.text)
        assert printed.status == 2 and len(lines) == 1 and words in lines[0], printed.text[-3000:]

    refused("mindio_alone", "1 of them have the same weights", 1, (FLAG,))
    monkeypatch.setenv("HIGH_AVAILABILITY", "dump,retry")
    refused("mindio_retry", "--enable-hbmfault-repair: after a fault MindIO builds the data iterators anew", 1)
