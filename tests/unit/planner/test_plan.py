"""A plan: whole steps from traces of fewer packs, other layouts, the picture, and what the command prints."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from mindspeed_vita.choices import RECOMPUTES
from mindspeed_vita.cli.main import main
from mindspeed_vita.config import validate
from mindspeed_vita.config.recipe import Recipe
from mindspeed_vita.planner.device_memory import extras
from mindspeed_vita.planner.layouts import Layout, divisors, other_layouts
from mindspeed_vita.planner.picture import stacked
from mindspeed_vita.planner.plan import Ranked, RankPlan, in_order
from mindspeed_vita.planner.proof import Case, proof_recipe
from mindspeed_vita.planner.trace.places import PARTS
from mindspeed_vita.planner.trace.step import trace
from mindspeed_vita.planner.whole_step import MEMORY_ROWS, Traffic, memory_row, more_packs_needed, step_collectives, step_work
from tests.unit.planner.traces import small

PACKS = 6


def longer(case: Case) -> Recipe:
    """A recipe of a case with more packs than a trace follows."""
    recipe = proof_recipe(case, "small")
    return replace(recipe, train=replace(recipe.train, global_batch=PACKS * case.dp))


@pytest.mark.parametrize("case", [Case(tp=2, dp=2), Case(pp=2, recompute="full")], ids=Case.describe)
def test_a_whole_step_follows_from_fewer_packs(case: Case, elsewhere):
    recipe, rank = longer(case), case.world - 1
    whole = elsewhere(trace, recipe, case.world, rank, micro_batches=PACKS)
    short = elsewhere(trace, recipe, case.world, rank)
    assert short.micro_batches == case.pp + 1 < PACKS == short.packs
    more = {number: elsewhere(trace, recipe, case.world, rank, micro_batches=number) for number in more_packs_needed(PACKS, case.pp + 1)}
    assert step_work(short) == whole.flops()
    assert step_collectives({case.pp + 1: short, **more}) == step_collectives({PACKS: whole})
    # the loss and the counts of each pack stay until the step ends
    assert 0 <= whole.peak - short.peak <= 64 * (PACKS - short.micro_batches)
    # a plan that took all collectives for those of packs would be wrong
    multiples = {
        key: Traffic(PACKS * one.calls, PACKS * one.bytes) for key, one in step_collectives({1: replace(more[1], packs=1)}).items()
    }
    assert multiples != step_collectives({PACKS: whole})


def test_weights_gradients_and_optimizer_have_the_sizes_of_the_parameters(elsewhere):
    parts = elsewhere(small, Case()).peak_by(memory_row)
    parameters = parts["weights"] // 2  # bf16
    assert parts["gradients"] == pytest.approx(4 * parameters, rel=0.001)  # fp32, with padding
    assert parts["optimizer"] == pytest.approx(12 * parameters, rel=0.001)  # fp32 weights and two moments
    assert {"saved activations", "attention", "tower", "exchange", "head"} <= set(parts)
    assert {part for _, part in PARTS} <= set(MEMORY_ROWS)
    assert "layers at work" in elsewhere(small, Case(recompute="full")).peak_by(memory_row)


def test_the_picture_shows_the_peak_and_every_byte(elsewhere):
    traced = elsewhere(small, Case())
    parts = stacked(traced, 50)
    total = np.sum(list(parts.values()), axis=0)
    assert len(total) == 50 and total.max() == traced.peak
    assert {name: sizes[total.argmax()] for name, sizes in parts.items() if sizes[total.argmax()]} == traced.peak_by(memory_row)


def test_a_device_adds_buffers_for_each_group_that_communicates(elsewhere):
    traced = elsewhere(small, Case(tp=2))
    groups = sum(size == 2 for _, size in traced.communicators)
    assert groups and {size for _, size in traced.communicators} <= {1, 2}
    assert [extra.bytes for extra in extras("npu", traced)][1] == groups * 400 * 2**20
    assert [extra.bytes for extra in extras("cuda", traced)][1] == groups * 256 * 2**20
    assert all("allowance" in extra.source or "documentation" in extra.source for extra in extras("npu", traced))
    with pytest.raises(ValueError, match="device 'tpu'; expected one of npu, cuda"):
        extras("tpu", traced)


def test_layouts_that_validate_come_nearest_first_and_the_others_with_a_reason():
    recipe, world = proof_recipe(Case(tp=2, recompute="full"), "small"), 4
    recipe = replace(recipe, train=replace(recipe.train, global_batch=2))
    accepted, refusals = other_layouts(recipe, world)
    own = Layout.of(recipe)
    distances = [layout.distance(own) for layout in accepted]
    assert own not in accepted and distances[0] == 1 and distances == sorted(distances)
    for layout in accepted:
        validate(layout.applied(recipe), world)
    found = {refusal.example: refusal.reason for refusal in refusals}
    # 2 packs are too few for 4 data-parallel ranks, and 2 layers for 4 stages
    assert "train.global_batch=2" in found["tp 1 pp 1 cp 1 dp 4"] and "num_layers=2" in found["tp 1 pp 4 cp 1 dp 1"]
    # (tp, pp, cp) of powers of two with a product of 1, 2 or 4, twice for tp > 1, and a ulysses for each divisor of cp
    cuts = sum(
        (2 if tp > 1 else 1) * (1 + int(np.log2(cp))) for tp in (1, 2, 4) for pp in (1, 2, 4) for cp in (1, 2, 4) if tp * pp * cp <= world
    )
    assert (len(accepted) + 1) / len(RECOMPUTES) + sum(refusal.count for refusal in refusals) == cuts


def test_what_fits_comes_first_then_work_with_idle_time_then_memory():
    def ranked(name: int, memory: int, work: int, idle: float = 0.0) -> Ranked:
        layout = Layout(name, 1, 1, 1, "none", "balanced")
        return Ranked(layout=layout, peak=memory, memory=memory, work=work, idle=idle)

    layouts = [ranked(1, 90, 10), ranked(2, 60, 30), ranked(3, 50, 20, idle=0.5), ranked(4, 40, 30)]
    assert [one.layout.tp for one in in_order(layouts, 64)] == [4, 2, 3, 1]
    assert [one.layout.tp for one in in_order(layouts, None)] == [4, 3, 2, 1]


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of a tiny model on two devices, as a file."""
    path = tmp_path_factory.mktemp("recipes") / "small.yaml"
    content = {
        "name": "small",
        "model": {"preset": "tiny"},
        "data": {"seq_length": 512},
        "parallel": {"tp": 2},
        "train": {"global_batch": 4},
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_the_command_prints_tables_ranks_layouts_and_draws(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    picture = tmp_path / "peak.svg"
    line = [
        "plan",
        str(recipe_file),
        "--devices",
        "2",
        "--memory",
        "8GiB",
        "--device",
        "cuda",
        "--limit",
        "1",
        "--processes",
        "1",
        "--explain",
        str(picture),
    ]
    assert main(line) == 0
    printed, progress = capsys.readouterr()
    for name in ("weights", "gradients", "optimizer", "all tensors", "cuda adds: NCCL buffers", "backward", "all_gather, tp (2)"):
        assert name in printed, name
    assert re.search(r"fits 8.00 GiB +yes\n", printed) and "time: name a device" in printed
    assert printed.count("fits: tp ") == 2 and "(this recipe's)" in printed
    assert "out: " in printed and "not traced: " in printed
    assert progress.count("traced 1 of") == 2, "one line for each trace"
    drawn = ElementTree.parse(picture).getroot()
    assert drawn.tag.endswith("svg") and len(drawn.findall(".//{*}polygon")) >= 5


def test_the_status_says_that_a_recipe_does_not_fit(
    recipe_file: Path, elsewhere, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    traced = elsewhere(small, Case())
    plan = RankPlan(kind="all", rank=0, trace=traced, collectives={}, extras=tuple(extras("npu", traced)))
    monkeypatch.setattr("mindspeed_vita.planner.plan.plan_own", lambda *given, **named: [plan])
    assert main(["plan", str(recipe_file), "--memory", f"{plan.memory}B"]) == 0
    assert main(["plan", str(recipe_file), "--memory", f"{plan.memory - 1}B"]) == 1
    assert re.findall(r"fits [0-9.]+ GiB +(\w+)\n", capsys.readouterr().out) == ["yes", "NO"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--memory", "much"], "--memory is 'much'; expected something like 5GB, 200MB or 64GiB"),
        (["--memory", "0GiB"], "--memory is '0GiB'; expected something like"),
        (["--memory", "64"], "--memory is '64', which has no unit; expected something like 5GB"),
        (["--devices", "3"], "does not divide the number of processes, 3;"),
        (["--devices", "0"], "--devices is 0; expected at least 1"),
        (["--limit", "-1"], "--limit is -1; expected at least 0"),
        (["--processes", "0"], "--processes is 0; expected at least 1"),
        (["--explain", "peak.png"], "--explain peak.png: the picture is SVG; name a file that ends in .svg"),
        (["--explain", "nowhere/peak.svg"], "--explain nowhere/peak.svg: no folder nowhere"),
        (["data.seq_length=511"], "data.seq_length=511 is not a multiple of 2*cp*tp"),
        (["parallel.tb=2"], "parallel.tb"),
    ],
)
def test_bad_input_is_one_message(words: list[str], message: str, recipe_file: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", str(recipe_file), *words]) == 2
    printed, said = capsys.readouterr()
    assert message in said and said.count("\n") == 1 and not printed


@pytest.mark.parametrize("number, expected", [(1, [1]), (4, [1, 2, 4]), (12, [1, 2, 3, 4, 6, 12]), (10**9 + 7, [1, 10**9 + 7])])
def test_divisors_are_found_without_trying_every_number(number: int, expected: list[int]):
    assert divisors(number) == expected
