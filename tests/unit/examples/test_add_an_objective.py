"""docs/add_an_objective.md followed by the letter: its module, data and recipe are cut out of the page, and trained."""

from __future__ import annotations

import json
import math
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator

import pytest
import torch
import torch.nn.functional as F

from mindspeed_vita.config import Recipe, load_recipe, objectives
from mindspeed_vita.engine import objective
from mindspeed_vita.engine.loop import train
from tests.preference_page import PAGE, block, write_page, write_start

BETA = 0.1


@pytest.fixture
def page(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's recipe in a folder with its module, pairs and a start."""
    monkeypatch.setattr(objective, "_BUILDERS", dict(objective._BUILDERS))
    monkeypatch.setattr(objectives, "_NAMES", list(objectives._NAMES))
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = write_page(tiny, tmp_path)
    yield path
    sys.modules.pop("my_dpo", None)


def run_module(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's command `python my_dpo.py dpo.yaml`, in this process."""
    assert "python my_dpo.py dpo.yaml" in block("bash", "my_dpo")
    monkeypatch.setattr(sys, "argv", ["my_dpo.py", str(path)])
    runpy.run_path(str(path.with_name("my_dpo.py")), run_name="__main__")


def test_the_margin_rises_from_zero(page: Path, curve: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe(page)
    write_start(recipe)
    with pytest.raises(ValueError, match="reference.json is missing; write it first"):
        train(recipe)
    run_module(page, monkeypatch)
    train(recipe, stop_at_step=5)
    train(recipe)  # goes on after a stop
    directory = Path(recipe.checkpoint.directory)
    losses, margins = curve(directory), curve(directory, "margin")
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6) and margins[0] == pytest.approx(0, abs=1e-5), "the policy is the reference"
    assert curve(directory, "supervised") == [len(pairs_of(recipe, step)) for step in range(recipe.train.steps)]
    assert min(margins[-3:]) > 0.4 > margins[1] and max(losses[-3:]) < 0.5, "seen: margins 0, -0.03 ... 0.58, 0.91, 0.64"
    assert min(curve(directory, "accuracy")[-3:]) >= 0.75 and f"margin {margins[-1]:.3f}" in capfd.readouterr().err
    told = load_recipe(page, ["train.objective=supervised"])
    with pytest.raises(ValueError, match="train.objective: preference there, supervised here"):
        train(told)


def pairs_of(recipe: Recipe, step: int) -> list[int]:
    """The chosen samples of a step's packs; every pack holds whole pairs."""
    dataset = open_packs(recipe)
    first = step * recipe.train.global_batch
    samples = [dataset.samples_of(number).tolist() for number in range(first, first + recipe.train.global_batch)]
    for pack in samples:
        assert all(chosen % 2 == 0 and rejected == chosen + 1 for chosen, rejected in zip(pack[::2], pack[1::2], strict=True))
    return [chosen for pack in samples for chosen in pack[::2]]


def open_packs(recipe: Recipe) -> Any:
    from mindspeed_vita.data.dataset import build_data

    model = recipe.model
    sizes = {"tokens_per_tile": model.tokens_per_tile, "tile_size": model.vision.tile_size, "vocab_size": model.language.vocab_size}
    return build_data(recipe.data, **sizes)


def test_the_gradient_is_that_of_plain_pytorch_on_single_samples(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mindspeed_vita.checkpoint.native import checkpoint
    from mindspeed_vita.data.assemble import assemble_pack
    from mindspeed_vita.engine.objective import build_objective
    from mindspeed_vita.engine.session import distributed
    from mindspeed_vita.parallel.shard import Sharder
    from mindspeed_vita.platform import get_platform

    recipe = load_recipe(page)
    write_start(recipe)
    run_module(page, monkeypatch)
    with distributed(recipe, get_platform()) as layout:
        from mindspeed_vita.parallel.build import build_model

        policy, reference = (build_model(recipe, layout) for _ in range(2))
        for model in (policy, reference):
            checkpoint.load_weights(recipe.checkpoint.init_from, model)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():  # as after some steps, so that the margin is not zero
            for parameter in policy.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        dataset, shard = open_packs(recipe), Sharder(recipe, layout, get_platform())
        preference = build_objective(recipe, layout, dataset)
        pack = dataset[0]
        result = preference(policy(shard(pack)), shard(pack))
        pairs = pack.sample_ids.view(-1, 2).tolist()
        assert int(result.count) == len(pairs) > 1 and len(pack.cu_seqlens) == 2 * len(pairs) + 2, "several pairs, a document an answer"
        tiles = pack.tiles_NCHW.view(len(pairs), 2, -1)
        assert torch.equal(tiles[:, 0], tiles[:, 1]) and not torch.equal(tiles[0], tiles[1]), "the answers of a pair have the same picture"
        (result.sum / result.count).backward()
        packed = {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}
        policy.zero_grad()

        def log_prob(model: Any, sample: int) -> torch.Tensor:
            """Log-probability of one answer, in a pack of its own, from whole rows of logits."""
            encoded = dataset.encode(sample)
            length = len(encoded.tokens_T) + len(encoded.tokens_T) % 2
            alone = assemble_pack(
                [encoded],
                seq_length=length,
                resets=True,
                pad_id=0,
                context_ids=pack.context_ids,
                tile_size=recipe.model.vision.tile_size,
            )
            rows = (alone.labels_T != -100).nonzero().squeeze(1)
            logits = model.logits(shard(alone), rows)
            return F.log_softmax(logits, dim=-1).gather(1, alone.labels_T[rows].unsqueeze(1)).sum()

        terms = []
        for chosen, rejected in pairs:
            with torch.no_grad():
                frozen = log_prob(reference, chosen) - log_prob(reference, rejected)
            margin = BETA * (log_prob(policy, chosen) - log_prob(policy, rejected) - frozen)
            terms.append(-torch.log(torch.sigmoid(margin)))
        loss = torch.stack(terms).mean()
        loss.backward()
        assert abs(loss.item() - math.log(2)) > 1e-3
        assert (result.sum / result.count).item() == pytest.approx(loss.item(), rel=1e-5)
        for name, parameter in policy.named_parameters():
            worst = float((packed[name] - parameter.grad).abs().max() / parameter.grad.abs().max())
            assert worst < 1e-5, (name, worst)


def test_pairs_that_cannot_be_compared_do_not_count(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mindspeed_vita.engine.objective import build_objective
    from mindspeed_vita.parallel.shard import Sharder
    from mindspeed_vita.platform import get_platform
    from tests.tiny_checkpoint import alone

    recipe = load_recipe(page)
    write_start(recipe)
    run_module(page, monkeypatch)
    dataset, shard = open_packs(recipe), Sharder(recipe, alone(), get_platform())
    preference, pack = build_objective(recipe, alone(), dataset), dataset[0]
    losses_T = torch.linspace(0, 1, len(pack.labels_T)).requires_grad_()
    failed = torch.zeros_like(pack.failed)
    failed[1] = True  # the rejected answer's picture does not decode
    inputs = shard(pack.with_failed(failed))
    whole, result = preference(losses_T, shard(pack)), preference(losses_T * (inputs.labels_T != -100), inputs)
    assert int(result.count) == int(whole.count) - 1 > 0
    (gradient,) = torch.autograd.grad(result.sum, losses_T)
    first_pair = slice(0, int(pack.sample_cu[2]))
    assert not gradient[first_pair].any() and gradient.any()
    nothing = replace(inputs, sample_ids=tuple(number + 1 for number in inputs.sample_ids))  # no rejected answer follows its chosen one
    result = preference(losses_T, nothing)
    assert int(result.count) == 0 and not torch.autograd.grad(result.sum, losses_T)[0].any()


def test_a_reference_of_other_data_or_settings_is_refused(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(page)
    write_start(recipe)
    run_module(page, monkeypatch)
    with pytest.raises(ValueError, match="was written for other data or other weights; write it again"):
        train(load_recipe(page, ["data.seed=9"]))
    with pytest.raises(ValueError, match="needs data.group=2, data.resets=true and data.loss_weighting=token"):
        train(load_recipe(page, ["data.loss_weighting=sample"]))


def test_the_shortest_objective_of_the_page_halves_the_loss(page: Path) -> None:
    names = {"ObjectiveResult": objective.ObjectiveResult, "register_objective": objective.register_objective}
    exec(block("py", "Halved"), names)
    losses = torch.tensor([1.0, 2.0, 4.0])
    result = names["Halved"]()(losses, SimpleNamespace(loss_count=torch.tensor(3, dtype=torch.int32)))  # type: ignore[operator]
    assert result.sum.item() == 3.5 and result.count.item() == 3 and "halved" in objectives.objective_names()


def test_the_page_names_what_it_had_to_touch() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "two files, `my_dpo.py` and `dpo.yaml`" in text and text.count("```python") == text.count("```yaml") == 1
    rows = [json.loads(line) for line in block("json", "messages").splitlines()]
    assert len(rows) == 2 and rows[0]["images"] == rows[1]["images"] and rows[0]["messages"][0] == rows[1]["messages"][0]
