"""On real MindSpeed-LLM over an emulated torch_npu: our step changes the targets and nothing else, and refuses what does not fit."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from mindspeed_vita.integration.patching import load_ledger
from tests.integration.mindspeed_run import MindSpeed

TARGETS = {patch.target: patch for patch in load_ledger().patches}
TRAIN_STEP = "megatron.training.training.train_step"


def report(mindspeed: MindSpeed, name: str, *flags: str) -> dict:
    output = mindspeed.folder / f"{name}.json"
    command = [mindspeed.python, str(Path(__file__).with_name("patches_process.py")), str(output), *flags]
    done = subprocess.run(command, cwd=mindspeed.folder, env=mindspeed.environment(), capture_output=True, text=True, timeout=420)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(output.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def plain(mindspeed: MindSpeed) -> dict:
    """Without flags of MindSpeed's."""
    return report(mindspeed, "plain")


@pytest.mark.slow
def test_exactly_the_targets_changed(plain):
    step = plain["step"]
    assert step["message"] == ""
    assert set(TARGETS) <= set(step["changed"])
    # a module that imported a target by its name holds the new one now; nothing else is different
    assert step["strangers"] == []
    leaves = {target.rsplit(".", 1)[1] for target in TARGETS}
    assert {name.rsplit(".", 1)[1] for name in step["changed"]} == leaves
    assert sorted(set(step["changed"]) - set(TARGETS)) == ["mindspeed_llm.training.training.train_step"]


@pytest.mark.slow
def test_ours_is_outermost_and_a_second_time_changes_nothing(plain):
    for target, layers in plain["layers"].items():
        assert layers == [TARGETS[target].replacement, target]
    assert plain["again"] == {"message": "", "changed": [], "strangers": []}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case, said",
    [
        ("alias", "mindspeed_llm.training.training.one_step holds megatron.training.training.train_step and would keep the old function"),
        ("foreign", f"{TRAIN_STEP} is already patched by __main__.foreign_wrapper, which the ledger does not know"),
        ("signature", "'forward_step_func' is gone; 'data_iterator' is gone"),
        ("none", f"{TRAIN_STEP} is None, nothing that can be called"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(plain, case, said):
    assert said in plain[case]["message"] and "nothing was patched" in plain[case]["message"]
    assert plain[case]["changed"] == []


@pytest.mark.slow
def test_ours_lies_over_a_declared_patch_of_mindspeeds(mindspeed):
    found = report(mindspeed, "dualpipev", "--schedules-method", "dualpipev")
    assert found["step"]["message"] == "" and found["step"]["strangers"] == []
    declared = "mindspeed.core.pipeline_parallel.dualpipev.dualpipev_chunks.train_step"
    assert found["layers"][TRAIN_STEP] == [TARGETS[TRAIN_STEP].replacement, declared]
