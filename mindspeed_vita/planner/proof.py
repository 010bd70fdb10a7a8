"""Layouts on which a trace is compared with torch's allocator, at a size that a CPU runs in seconds."""

from __future__ import annotations

import gc
import math
from dataclasses import asdict, dataclass
from typing import Any

from mindspeed_vita.config import Recipe, recipe_from_dict
from mindspeed_vita.planner.measured import Measured, measure
from mindspeed_vita.planner.trace.packs import PackContent
from mindspeed_vita.planner.trace.result import Trace

CONTENT = PackContent(documents=3)
TOLERANCE = 0.02
"""Of the measured bytes. Worst seen: see docs/planner.md."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layout, and what is recomputed."""

    tp: int = 1
    pp: int = 1
    cp: int = 1
    ulysses: int = 1
    cp_per_node: int = 0
    ring_gradients: str = "fp32"
    dp: int = 1
    vision_parallel: str = "balanced"
    recompute: str = "none"
    recompute_layers: int = 0
    offload: str = "none"
    precision: str = "bf16"

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.tp * self.pp * self.cp * self.dp

    def describe(self) -> str:
        """The settings that are not the default."""
        default = asdict(Case())
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items() if value != default[name]) or "one rank"


CASES = (
    Case(),
    Case(recompute="full", precision="fp32"),
    Case(recompute="selective"),
    Case(recompute="mlp"),
    Case(recompute="full", recompute_layers=1),
    Case(recompute="full", offload="inputs"),
    Case(tp=2),
    Case(tp=2, vision_parallel="tensor", recompute="full"),
    Case(pp=2),
    Case(pp=2, recompute="full"),
    Case(cp=2, recompute="full"),
    Case(cp=2, ulysses=2),
    Case(dp=2),
    Case(tp=2, cp=2, recompute="full"),
    Case(pp=2, cp=2, recompute="full_but_attention"),
)
"""tp, pp, cp, Ulysses and dp, each alone and in products, with both ways to share the tower and all ways to recompute."""

_SIZES: dict[str, dict[str, Any]] = {
    "small": {"hidden": 256, "vocabulary": 2048, "layers": 2, "tower": 64, "tokens": 1024},
    "mid": {"hidden": 512, "vocabulary": 8192, "layers": 4, "tower": 128, "tokens": 4096},
}


def proof_recipe(case: Case, size: str) -> Recipe:
    """The recipe of a case: everything trains, samples are isolated.

    Args:
        case: layout and recomputation.
        size: small, or mid: there, one rank's peak is at least 256 MiB.
    """
    sizes = _SIZES[size]
    hidden, tower = sizes["hidden"], sizes["tower"]
    return recipe_from_dict(
        {
            "model": {
                "preset": "tiny",
                "vision": {"tile_size": 224, "hidden_size": tower, "num_layers": 2, "num_heads": 4, "ffn_hidden_size": 4 * tower},
                "projector": {"hidden_size": 2 * tower},
                "language": {
                    "num_layers": sizes["layers"],
                    "hidden_size": hidden,
                    "num_heads": 8,
                    "num_kv_heads": 4,
                    "ffn_hidden_size": 3 * hidden,
                    "vocab_size": sizes["vocabulary"],
                    "max_positions": 32768,
                },
                "lm_head_chunk": 1024,
            },
            # a rank of a large group holds few weights: its tokens fill the memory
            "data": {"seq_length": sizes["tokens"] * (4 if case.world > 2 else 1)},
            "parallel": {
                "tp": case.tp, "pp": case.pp, "cp": case.cp, "ulysses": case.ulysses, "vision_parallel": case.vision_parallel,
                "cp_per_node": case.cp_per_node, "ring_gradients": case.ring_gradients,
            },
            "train": {
                "precision": case.precision,
                "recompute": case.recompute,
                "recompute_layers": case.recompute_layers,
                "offload": case.offload,
                "global_batch": case.dp * (case.pp + 1),
            },
        }
    )  # fmt: skip


def measure_case(case: Case, size: str, rank: int) -> Measured:
    """What the allocator holds on one rank of a case."""
    found = measure(proof_recipe(case, size), case.world, rank, content=CONTENT)
    gc.collect()  # the model of the step
    return found


def peak_of_a_cpu(trace: Trace) -> int:
    """The traced peak as the allocator of a CPU sees it: what train.offload moves to the host stays in the same memory."""
    return trace.peak + trace.peak_on_host


def off_by(traced: int, measured: int) -> float:
    """Relative error, with its sign."""
    return math.inf if not measured else traced / measured - 1
