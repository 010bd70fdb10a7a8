"""What `vita convert` writes, loaded by real MindSpeed-LLM: weights give the native loss, and runs continue with their optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mindspeed_vita.cli.main import main
from mindspeed_vita.config import Recipe
from tests.integration.mindspeed_run import MindSpeed, Printed
from tests.tiny_data import TinyData, read_metrics

STEPS, SAVED = 10, 5
LOSS = {"fp32": 1e-6, "bf16": 1e-4}
"""Relative, as in test_mindspeed_llm.py: seven printed digits, and what the fused norm and the reduction round otherwise in bf16."""
RATES = {"vision_lr_mult": 0.1, "vision_layer_decay": 0.9, "weight_decay": 0.01}
ONCE = ["--no-load-rng"]
"""What MindSpeed-LLM asks for where a checkpoint has no random states."""


@pytest.fixture(scope="module")
def recipe(tiny: TinyData, mindspeed: MindSpeed, weights: Path) -> Any:
    """Makes recipes that start from the common weights and save in the middle: recipe("name", train={...})."""

    def make(name: str, **sections: Any) -> Recipe:
        sections["train"] = {"steps": STEPS, **RATES, **sections.get("train", {})}
        sections["checkpoint"] = {"init_from": str(weights), "save_every": SAVED, "keep": 0, **sections.get("checkpoint", {})}
        return tiny.recipe(mindspeed.folder / name, **sections)

    return make


def convert(source: Path, to: str, output: Path, *more: str) -> str:
    assert main(["convert", "--from", str(source), "--to", to, "--output", str(output), *more]) == 0
    return str(output)


@pytest.fixture(scope="module")
def built_in(recipe: Any) -> Any:
    """The uninterrupted curve of the built-in engine, and the run's folder: built_in("fp32")."""
    made: dict[str, tuple[Path, dict[int, float]]] = {}

    def run(precision: str) -> tuple[Path, dict[int, float]]:
        from mindspeed_vita.engine.loop import train

        if precision not in made:
            own = recipe(f"uninterrupted_{precision}", train={"precision": precision})
            train(own)
            folder = Path(own.checkpoint.directory)
            made[precision] = folder, dict(enumerate(read_metrics(folder), 1))
        return made[precision]

    return run


def continues(mindspeed: MindSpeed, what: str, printed: Printed, ranks: int, curve: dict[int, float], precision: str) -> None:
    assert mindspeed.off_by(what, ranks, printed, curve) <= LOSS[precision]
    assert sorted(printed.losses) == list(range(SAVED + 1, STEPS + 1)), "it continued behind the step that was saved"


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2)])
def test_converted_weights_give_the_native_models_loss(mindspeed: MindSpeed, recipe: Any, weights: Path, built_in: Any, tp: int, pp: int):
    name = f"weights_tp{tp}pp{pp}"
    start = convert(weights, "mindspeed-llm", mindspeed.folder / name, "--tp", str(tp), "--pp", str(pp))
    told = recipe(f"{name}_run", train={"steps": 1}, parallel={"tp": tp, "pp": pp}, checkpoint={"init_from": ""})
    printed = mindspeed.train(told, tp * pp, name, ["--load", start, "--finetune"])
    what = f"fp32, tp{tp} pp{pp}, converted weights, the native model's first loss"
    assert mindspeed.off_by(what, tp * pp, printed, built_in("fp32")[1]) <= LOSS["fp32"]
    assert sorted(printed.losses) == [1]


@pytest.mark.parametrize(("precision", "parallel", "ranks"), [("fp32", {"tp": 2}, 2), ("bf16", {}, 2)], ids=["fp32_tp2", "bf16_dp2"])
def test_a_native_run_continues_with_its_optimizer(
    mindspeed: MindSpeed, recipe: Any, built_in: Any, precision: str, parallel: dict[str, int], ranks: int
):
    folder, curve = built_in(precision)
    name = f"from_native_{precision}"
    layout = [word for axis, size in parallel.items() for word in (f"--{axis}", str(size))]
    output = convert(folder / f"step_{SAVED:07d}", "mindspeed-llm", mindspeed.folder / name, "--optimizer", *layout)
    told = recipe(name, train={"precision": precision}, parallel=parallel, checkpoint={"directory": output, "init_from": ""})
    flags = [*ONCE, "--use-fused-rmsnorm"] if precision == "bf16" else ONCE
    printed = mindspeed.train(told, ranks, name, flags)
    what = f"{precision}, {'tp2' if parallel else 'dp2'}, continues a native run with its optimizer, built-in engine's curve"
    continues(mindspeed, what, printed, ranks, curve, precision)


def test_the_built_in_engine_continues_a_run_of_mindspeed_llm(mindspeed: MindSpeed, recipe: Any, built_in: Any):
    from mindspeed_vita.engine.loop import train

    told = recipe("to_native", parallel={"tp": 2})
    printed = mindspeed.train(told, 2, "to_native")
    assert printed.status == 0, printed.text[-3000:]
    output = convert(Path(told.checkpoint.directory) / f"iter_{SAVED:07d}", "native", mindspeed.folder / "back", "--optimizer")
    train(recipe("back", checkpoint={"directory": output, "init_from": ""}))
    found = dict(enumerate(read_metrics(Path(output)), SAVED + 1))
    assert sorted(found) == list(range(SAVED + 1, STEPS + 1))
    expected = built_in("fp32")[1]
    worst = max(abs(found[step] - expected[step]) / expected[step] for step in found)
    what = "fp32, the built-in engine continues MindSpeed-LLM's tp2 with the optimizer, built-in engine's curve"
    mindspeed.rows.append(f"| {what} | 1 | {len(found)} | {worst:.1e} |")
    assert worst <= LOSS["fp32"]


@pytest.mark.parametrize(("precision", "before", "ranks"), [("fp32", {"tp": 2}, 2), ("bf16", {}, 1)], ids=["fp32_tp2", "bf16_pp1"])
def test_a_run_continues_at_another_layout_with_its_optimizer(
    mindspeed: MindSpeed, recipe: Any, precision: str, before: dict[str, int], ranks: int
):
    name = f"relaid_{precision}"
    told = recipe(f"{name}_before", train={"precision": precision}, parallel=before)
    whole = mindspeed.train(told, ranks, f"{name}_before")
    assert whole.status == 0, whole.text[-3000:]
    source = Path(told.checkpoint.directory) / f"iter_{SAVED:07d}"
    output = convert(source, "mindspeed-llm", mindspeed.folder / name, "--optimizer", "--tp", "1", "--pp", "2")
    after = recipe(name, train={"precision": precision}, parallel={"pp": 2}, checkpoint={"directory": output, "init_from": ""})
    printed = mindspeed.train(after, 2, name, ONCE)
    was = "tp2" if before else "pp1"
    continues(mindspeed, f"{precision}, {was}, then tp1 pp2 with the optimizer, {was}'s curve", printed, 2, whole.losses, precision)


def test_a_run_resumes_where_both_layers_and_stages_are_split(mindspeed: MindSpeed, recipe: Any, built_in: Any):
    """Without a conversion: the rows of the other layouts have this one next to them."""
    told, curve = recipe("tp2pp2", parallel={"tp": 2, "pp": 2}), built_in("fp32")[1]
    first = mindspeed.train(told, 4, "tp2pp2", ["--exit-interval", str(SAVED)])
    assert mindspeed.off_by("fp32, tp2 pp2, up to its checkpoint, built-in engine's curve", 4, first, curve) <= LOSS["fp32"]
    assert sorted(first.losses) == list(range(1, SAVED + 1))
    second = mindspeed.train(told, 4, "tp2pp2_resumed")
    continues(mindspeed, "fp32, tp2 pp2, resumed with its optimizer, built-in engine's curve", second, 4, curve, "fp32")
