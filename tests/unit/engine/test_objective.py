"""The default objective: its loss by source, what it may not do, and how it reaches the logs; objectives by name."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from mindspeed_vita.checks.parity.packs import MODEL, make_pack
from mindspeed_vita.config import Recipe, objectives, recipe_from_dict, validate
from mindspeed_vita.engine import objective
from mindspeed_vita.engine.loop import train
from mindspeed_vita.engine.objective import (
    ObjectiveResult,
    SupervisedCrossEntropy,
    averages,
    build_objective,
    register_objective,
    report_table,
    sample_sums,
)
from mindspeed_vita.models.inputs import ModelInputs
from mindspeed_vita.parallel.shard import Sharder
from mindspeed_vita.platform.cpu import CpuPlatform
from tests.tiny_checkpoint import alone

SOURCES = ("pets", "text", "charts")


def inputs_of(*, sources: list[int], cp: int = 1, rank: int = 0, weights: float = 1.0) -> ModelInputs:
    """A rank's share of a pack of four samples."""
    layout = replace(alone(), cp_size=cp, cp_rank=rank)
    pack = make_pack(0, True, layout)
    pack = replace(pack, source_ids=torch.tensor(sources), weights_T=weights * pack.weights_T)
    return Sharder(recipe_from_dict({"model": MODEL}), layout, CpuPlatform())(pack)


def losses_of(inputs: ModelInputs) -> torch.Tensor:
    """Some losses: 1, 2, 3 ... by token id, 0 where there is no label."""
    return inputs.tokens_T.float() * inputs.weights_T * (inputs.labels_T != -100)


@pytest.mark.parametrize("weights", [1.0, 0.25])
@pytest.mark.parametrize("sources", [[2, 0, 2, 0], [1, 1, 1, 1]])
@pytest.mark.parametrize("cp", [1, 2, 4])
def test_parts_of_all_ranks_add_up_to_the_loss_of_each_source(cp: int, sources: list[int], weights: float) -> None:
    supervised = SupervisedCrossEntropy(SOURCES)
    shares = [inputs_of(sources=sources, cp=cp, rank=rank, weights=weights) for rank in range(cp)]
    tables = torch.stack([report_table(supervised(losses_of(inputs), inputs), supervised.names) for inputs in shares]).sum(0)
    whole = inputs_of(sources=sources, weights=weights)
    losses_T, bounds = losses_of(whole), make_pack(0, True, alone()).sample_cu.tolist()
    expected = torch.zeros(4, 2)
    expected[0] = torch.stack([losses_T.sum(), whole.loss_count.float()])
    for source, first, last in zip(sources, bounds, bounds[1:]):
        expected[1 + source] += torch.stack([losses_T[first:last].sum(), whole.weights_T[first:last].sum()])
    if len(set(sources)) == 1:
        expected[1 + sources[0]] = expected[0]
    torch.testing.assert_close(tables, expected)
    found = averages(supervised.names, *tables[1:].T.tolist())
    assert list(found) == [f"loss/{SOURCES[source]}" for source in sorted(set(sources))], "an absent source has no number"


def test_one_source_is_not_reported_twice() -> None:
    inputs = inputs_of(sources=[0, 0, 0, 0])
    supervised = SupervisedCrossEntropy(("all",))
    assert supervised.names == () and not supervised(losses_of(inputs), inputs).report


@pytest.mark.parametrize("sources", [[2, 0, 2, 0], [1, 1, 1, 1]])
def test_nothing_waits_for_the_device(sources: list[int]) -> None:
    """Tensors on the meta device have no values: whatever asks for one, or for a shape that depends on one, raises."""
    inputs = inputs_of(sources=sources)
    there = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    inputs = replace(inputs, **{name: value.to("meta") for name, value in there.items() if isinstance(value, torch.Tensor)})
    supervised = SupervisedCrossEntropy(SOURCES)
    losses_T = torch.zeros(len(inputs.tokens_T), device="meta", requires_grad=True)
    assert report_table(supervised(losses_T, inputs), supervised.names).shape == (4, 2)
    assert sample_sums(losses_T, inputs, alone()).shape == (4,)


def test_sums_of_samples_are_differentiable() -> None:
    inputs = inputs_of(sources=[0, 0, 0, 0])
    losses_T = losses_of(inputs).requires_grad_()
    sums = sample_sums(losses_T, inputs, alone())
    bounds = make_pack(0, True, alone()).sample_cu.tolist()
    torch.testing.assert_close(sums.detach(), torch.stack([losses_T[a:b].sum() for a, b in zip(bounds, bounds[1:])]).detach())
    (gradient,) = torch.autograd.grad(sums @ torch.tensor([1.0, 2.0, 3.0, 4.0]), losses_T)
    for sample, (first, last) in enumerate(zip(bounds, bounds[1:])):
        assert set(gradient[first:last][inputs.labels_T[first:last] != -100].tolist()) <= {sample + 1.0}


def test_a_report_says_only_what_was_announced() -> None:
    one = torch.ones(())
    result = ObjectiveResult(sum=one, count=one, report={"margin": (one, one), "accuracy": (one, one)})
    with pytest.raises(ValueError, match="the objective reports accuracy; list every name of a report in its `names`"):
        report_table(result, ("margin",))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objectives that a test registers are forgotten after it."""
    monkeypatch.setattr(objective, "_BUILDERS", dict(objective._BUILDERS))
    monkeypatch.setattr(objectives, "_NAMES", list(objectives._NAMES))


def test_objectives_have_names(registered: None) -> None:
    written = {"train": {"objective": "preference"}}
    with pytest.raises(ValueError, match="train.objective='preference'; expected one of supervised"):
        recipe_from_dict(written)
    builder = lambda context: SupervisedCrossEntropy(("a", "b"))  # noqa: E731
    for _ in range(2):
        register_objective("preference", builder)
    recipe = recipe_from_dict(written)
    validate(recipe)
    assert build_objective(recipe, alone()).names == ("loss/a", "loss/b")
    with pytest.raises(ValueError, match="train.objective 'supervised' is registered already; choose another name"):
        register_objective("supervised", builder)


class Doubled:
    """Twice the supervised loss, and a name that a metrics file has already."""

    names = ("lr",)

    def __call__(self, losses_T: torch.Tensor, inputs: ModelInputs) -> ObjectiveResult:
        total = 2 * losses_T.sum()
        return ObjectiveResult(sum=total, count=inputs.loss_count, report={"lr": (total, inputs.loss_count)})


def test_a_name_of_the_metrics_file_is_refused(registered: None, tiny: Any, tmp_path: Any) -> None:
    register_objective("doubled", lambda context: Doubled())
    with pytest.raises(ValueError, match="the objective reports lr, which metrics.jsonl has already; choose another name"):
        train(tiny.recipe(tmp_path, train={"objective": "doubled"}), stop_at_step=1)


def mixed(tiny: Any, directory: Any, packing: str, **train_section: Any) -> Recipe:
    data = {"mixture": tiny.two_sources, "packing": packing}
    return tiny.recipe(directory, data=data, train=train_section, logging={"tensorboard": True})


def test_losses_by_source_are_logged_and_survive_a_resume(tiny: Any, tmp_path: Any, curve: Any, capfd: Any) -> None:
    train(mixed(tiny, tmp_path / "whole", "cross_source"), stop_at_step=4)
    said = capfd.readouterr().err
    pictures, text, loss = (curve(tmp_path / "whole", key) for key in ("loss/pictures", "loss/text", "loss"))
    assert len(pictures) == len(text) == 4 and all(min(a, b) < both < max(a, b) for a, b, both in zip(pictures, text, loss))
    first, second = sorted((("pictures", pictures[0]), ("text", text[0])), key=lambda part: -part[1])
    assert f"loss {loss[0]:.4f} ({first[0]} {first[1]:.3f}, {second[0]} {second[1]:.3f}) lr" in said
    recipe = mixed(tiny, tmp_path / "resumed", "cross_source")
    train(recipe, stop_at_step=2)
    train(recipe, stop_at_step=4)
    for key in ("loss", "loss/pictures", "loss/text"):
        assert curve(tmp_path / "resumed", key) == curve(tmp_path / "whole", key)


def test_a_step_that_does_not_meet_a_source_has_no_number_for_it(tiny: Any, tmp_path: Any, curve: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(mixed(tiny, tmp_path, "same_source", global_batch=1), stop_at_step=6)
    by_source = {name: curve(tmp_path, f"loss/{name}") for name in ("pictures", "text")}
    assert all(by_source.values()) and sorted(sum(by_source.values(), [])) == sorted(curve(tmp_path))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name, losses in by_source.items():
        assert [event.value for event in events.Scalars(f"loss/{name}")] == pytest.approx(losses)


def test_accumulation_and_sample_weighting_leave_the_loss_by_source_unchanged(tiny: Any, tmp_path: Any, curve: Any) -> None:
    """With a rate of 0, four steps of one pack see the weights that one step of four packs sees."""
    still = {"lr": 0.0, "min_lr": 0.0}
    for weighting in ("token", "sample"):
        recipes = [mixed(tiny, tmp_path / weighting / str(batch), "same_source", global_batch=batch, **still) for batch in (4, 1)]
        together, apart = (replace(recipe, data=replace(recipe.data, loss_weighting=weighting)) for recipe in recipes)
        train(together, stop_at_step=1)
        train(apart, stop_at_step=4)
        sums, counts = {"pictures": 0.0, "text": 0.0}, {"pictures": 0, "text": 0}
        for line in metrics(tmp_path / weighting / "1"):
            (source,) = (name for name in sums if f"loss/{name}" in line)
            sums[source] += line["loss"] * line["supervised"]
            counts[source] += line["supervised"]
        assert all(counts.values())
        for source, total in sums.items():
            (found,) = curve(tmp_path / weighting / "4", f"loss/{source}")
            assert found == pytest.approx(total / counts[source], rel=1e-6)


def metrics(directory: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
