"""Options of Megatron's and MindSpeed's around the same step: each trains the curve of the run without it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mindspeed_vita.checkpoint.megatron import rank_files
from mindspeed_vita.cli.main import main
from mindspeed_vita.config import Recipe
from tests.integration.conftest import save_fresh_weights
from tests.integration.mindspeed_run import MindSpeed
from tests.tiny_data import TinyData, read_metrics

LOSS, NORM, STEPS = 1e-6, 1e-3, 4
"""As in test_mindspeed_llm.py."""


@pytest.fixture(scope="module")
def recipe(tiny: TinyData, mindspeed: MindSpeed) -> Callable[..., Recipe]:
    """Makes recipes with four decoder layers that start from common weights."""

    def make(name: str, **sections: Any) -> Recipe:
        told = tiny.recipe(mindspeed.folder / name, **{**sections, "train": {"steps": STEPS, **sections.get("train", {})}})
        return replace(told, model=replace(told.model, language=replace(told.model.language, num_layers=4)))

    start = {"init_from": str(save_fresh_weights(make("four_layers"), mindspeed.folder / "four_layers"))}
    return lambda name, **sections: make(name, **{**sections, "checkpoint": {**start, **sections.get("checkpoint", {})}})


def built_in(recipe: Callable[..., Recipe], name: str, **sections: Any) -> tuple[dict[int, float], dict[int, float]]:
    """Losses and gradient norms of the built-in engine on one rank, by step."""
    from mindspeed_vita.engine.loop import train

    own = recipe(name, **sections)
    train(own)
    columns = [dict(enumerate(read_metrics(Path(own.checkpoint.directory), key), 1)) for key in ("loss", "grad_norm")]
    return columns[0], columns[1]


@pytest.fixture(scope="module")
def curve(recipe: Callable[..., Recipe]) -> tuple[dict[int, float], dict[int, float]]:
    return built_in(recipe, "curve_built_in")


@pytest.fixture(scope="module")
def frozen_tower(recipe: Callable[..., Recipe]) -> tuple[dict[int, float], dict[int, float]]:
    return built_in(recipe, "frozen_built_in", train=FROZEN)


FROZEN = {"modules": ["projector", "language"]}
INTERLEAVED = {"pp": 2, "virtual_stages": 2}


def near(expected: Mapping[int, float], tolerance: float = NORM) -> Any:
    return pytest.approx(expected, abs=tolerance)


def test_virtual_stages_train_resume_and_convert(
    mindspeed: MindSpeed, recipe: Callable[..., Recipe], curve: tuple[dict[int, float], dict[int, float]], tiny: TinyData
):
    """With held-out loss, and with recomputation and layer inputs in host memory: a pack is passed through the ranks twice."""
    evaluation = {"mixture": tiny.held_out, "packs": 7, "every": 2}
    train = {"recompute": "full_but_attention", "offload": "inputs"}
    told = recipe("virtual", parallel=INTERLEAVED, checkpoint={"save_every": 2}, eval=evaluation, train=train)
    first = mindspeed.train(told, 2, "virtual", ["--exit-interval", "2"])
    second = mindspeed.train(told, 2, "virtual_resumed")
    what = "fp32, pp2, 2 virtual stages, recomputation, offload, stopped and resumed, built-in engine's curve"
    both = replace(second, losses={**first.losses, **second.losses}, status=first.status or second.status, text=first.text + second.text)
    assert mindspeed.off_by(what, 2, both, curve[0]) <= LOSS
    assert sorted(both.losses) == [1, 2, 3, 4] and {**first.norms, **second.norms} == near(curve[1])

    folder = Path(told.checkpoint.directory)
    assert rank_files.saved_layout(folder).virtual_stages == 2
    assert main(["convert", "--from", str(folder), "--to", "native", "--output", str(mindspeed.folder / "virtual_native")]) == 0
    plain = recipe("after_virtual", checkpoint={"init_from": str(mindspeed.folder / "virtual_native")}, train={"steps": 1})
    measured = re.findall(r"validation loss at iteration \d+.*?lm loss value: (\S+)", both.text, re.S)
    after = replace(plain, train=replace(plain.train, lr=0.0, min_lr=0.0), eval=replace(told.eval, every=1))
    again = mindspeed.train(after, 1, "after_virtual")
    assert again.status == 0, again.text[-3000:]
    assert float(re.findall(r"lm loss value: (\S+)", again.text)[-1]) == pytest.approx(float(measured[-1]), rel=LOSS)

    refused = mindspeed.train(replace(told, parallel=replace(told.parallel, virtual_stages=1)), 2, "virtual_refused")
    assert refused.status == 2 and "was saved with 2 virtual stages, this run has 1" in refused.text


COUNTS_NORMS = """
import atexit
from mindspeed.core.transformer.transformer import CheckpointWithoutOutput

again = [0]
recompute = CheckpointWithoutOutput.recompute

def counted(self, *arguments):
    again[0] += 1
    return recompute(self, *arguments)

CheckpointWithoutOutput.recompute = counted
atexit.register(lambda: print(f"\\n{again[0]} norms were computed again", flush=True))
"""
BLOCK = "--recompute-granularity full --recompute-method block --recompute-num-layers"
TOGETHER = {
    "norm": ("--recompute-norm", {}),
    "norm_selective": ("--recompute-norm --recompute-norm-num-layers 2 --recompute-activation-function", {"recompute": "selective"}),
    "norm_block": (f"--recompute-norm {BLOCK} 2", {}),
}
"""MindSpeed's recomputation with ours and with Megatron's."""
@pytest.mark.parametrize("name", TOGETHER)
def test_mindspeeds_recomputation_and_ours_together(
    mindspeed: MindSpeed, recipe: Callable[..., Recipe], curve: tuple[dict[int, float], dict[int, float]], name: str
):
    (mindspeed.folder / "counts_norms.py").write_text(COUNTS_NORMS)
    flags, train = TOGETHER[name]
    told = replace(recipe(f"together_{name}", train=train), plugins=("counts_norms",))
    printed = mindspeed.train(told, 1, f"together_{name}", flags.split())
    what = ", ".join([*flags.replace("--", "").split(" recompute-gran")[:1], *train.values()])
    assert mindspeed.off_by(f"fp32, {what}, built-in engine's curve", 1, printed, curve[0]) <= LOSS
    assert printed.norms == near(curve[1])
    (again,) = re.findall(r"(\d+) norms were computed again", printed.text)
    assert int(again) > 0


SWAPS_EVERYTHING = """
import atexit
from collections import Counter

import torch
from mindspeed.core.memory.swap_attention import prefetch

swapped = Counter()
transfer = prefetch.SwapTensor.launch_d2h

def counted(self, stream):
    swapped[self.layer_name.split("language.")[-1]] += 1
    return transfer(self, stream)

def stays(tensor):  # without upstream's smallest size, which nothing here reaches
    storage = tensor.storage().size()
    return tensor.grad_fn is None or storage == 0 or storage != tensor.numel()

class Unpinned:  # the emulation has no pinned memory
    def __getattr__(self, name):
        if name == "empty":
            return lambda *arguments, pin_memory=False, **keywords: torch.empty(*arguments, **keywords)
        return getattr(torch, name)

prefetch.torch = Unpinned()
prefetch.SwapTensor.launch_d2h, prefetch.SwapPrefetch.no_swap_tensor = counted, staticmethod(stays)
atexit.register(lambda: print("".join(f"\\nswapped {name}: {number}" for name, number in swapped.items()), flush=True))
"""
SWAPPED = {
    "pp2": ({"pp": 2}, "", {}),
    "virtual": (INTERLEAVED, "--recompute-norm", {}),
    "full_but_attention": ({}, "", {"recompute": "full_but_attention"}),
    "block": ({}, f"{BLOCK} 2", {}),
}


@pytest.mark.parametrize("name", SWAPPED)
def test_attention_is_swapped_while_the_tower_is_frozen(
    mindspeed: MindSpeed, recipe: Callable[..., Recipe], frozen_tower: tuple[dict[int, float], dict[int, float]], name: str
):
    (mindspeed.folder / "swaps_everything.py").write_text(SWAPS_EVERYTHING)
    parallel, flags, train = SWAPPED[name]
    told = replace(recipe(f"swapped_{name}", parallel=parallel, train={**FROZEN, **train}), plugins=("swaps_everything",))
    ranks = parallel.get("pp", 1)
    printed = mindspeed.train(told, ranks, f"swapped_{name}", ["--swap-attention", *flags.split()])
    what = f"fp32, swapped attention, frozen tower, {name.replace('_', ' ')}, built-in engine's curve"
    assert mindspeed.off_by(what, ranks, printed, frozen_tower[0]) <= LOSS
    assert printed.norms == near(frozen_tower[1])
    found: Counter[str] = Counter()
    for layer, number in re.findall(r"swapped (\S+): (\d+)", printed.text):
        found[layer] += int(number)
    assert found and all(layer.startswith("decoder.layers.") for layer in found)


def test_swapped_attention_with_a_tower_that_trains_is_refused(mindspeed: MindSpeed, recipe: Callable[..., Recipe]):
    printed = mindspeed.train(recipe("swapped_tower"), 1, "swapped_tower", ["--swap-attention"])
    assert printed.status == 2 and "--swap-attention while the tower trains" in printed.text


PLAIN_KERNEL = """
import atexit

import torch_npu
from mindspeed.core.optimizer.swap_optimizer import swap_optimizer

updates = [0]

def adamw(weight, grad, first, second, largest, step, rate, beta1, beta2, decay, eps, amsgrad, maximize):
    updates[0] += 1
    powers = beta1 ** (int(step) - 1), beta2 ** (int(step) - 1)  # of the step before
    torch_npu.npu_apply_adam_w(*powers, rate, decay, beta1, beta2, eps, grad, None, amsgrad, maximize, out=(weight, first, second))

swap_optimizer.npu_apply_fused_adamw_v2 = adamw
atexit.register(lambda: print(f"\\n{updates[0]} updates of swapped states", flush=True))
"""


def test_a_swapped_optimizer_trains_the_curve_and_resumes(mindspeed: MindSpeed, recipe: Callable[..., Recipe]):
    """MindSpeed compiles its kernel against CANN; here it is the emulated one of the optimizer that is not swapped."""
    (mindspeed.folder / "plain_kernel.py").write_text(PLAIN_KERNEL)
    settings: dict[str, Any] = {"train": {"precision": "bf16"}, "checkpoint": {"save_every": 2}}
    whole = mindspeed.train(recipe("not_swapped", **settings), 2, "not_swapped")
    told = replace(recipe("swapped_states", **settings), plugins=("plain_kernel",))
    flags = ["--swap-optimizer", "--swap-optimizer-times", "3"]
    first = mindspeed.train(told, 2, "swapped_states", [*flags, "--exit-interval", "2"])
    second = mindspeed.train(told, 2, "swapped_states_resumed", flags)
    both = replace(second, losses={**first.losses, **second.losses}, status=first.status or second.status, text=first.text + second.text)
    # both kernels are one here, but the swapped one is handed whole steps where the other one is handed powers
    assert mindspeed.off_by("bf16, dp2, swapped optimizer, stopped and resumed, curve without", 2, both, whole.losses) <= 1e-4
    assert {**first.norms, **second.norms} == near(whole.norms)
    assert all(int(number) > 0 for number in re.findall(r"(\d+) updates of swapped states", both.text))
