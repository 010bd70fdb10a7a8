"""One step in every mode of recomputation, with what is called and kept counted; runs in the workers of a layout's pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from mindspeed_vita.checks.parity.step import loss_and_gradients, make_recipe
from mindspeed_vita.config.recompute import kept_attention_bytes
from mindspeed_vita.models.kept_attention import KeptAttention
from mindspeed_vita.ops.attention import torch_native
from mindspeed_vita.parallel import ring_exchange
from mindspeed_vita.parallel.layout import ParallelLayout
from tests.mutants import mutated

MODES: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute": "selective"},
    "mlp": {"recompute": "mlp"},
    "full": {"recompute": "full"},
    "full_but_attention": {"recompute": "full_but_attention"},
    "full, offloaded": {"recompute": "full", "offload": "inputs"},
    "full_but_attention, offloaded": {"recompute": "full_but_attention", "offload": "inputs"},
    "full in 1": {"recompute": "full", "recompute_layers": 1},
}
MUTANTS: dict[str, tuple[str, str, str]] = {
    "the kept output is off": ("kept_attention", "self._pair = out, lse", "self._pair = out * 1.0001, lse"),
    "the kept log-sum-exp is off": ("kept_attention", "self._pair = out, lse", "self._pair = out, lse * 1.0001"),
    "a layer keeps one result for all micro-batches": (
        "decoder_layer", "context.kept = KeptAttention()", 'context.kept = self.__dict__.setdefault("stale", KeptAttention())',
    ),
    "another layer's input comes back": ("layer_inputs", "fetch(self._host, tensor)", "fetch((self._before or self)._host, tensor)"),
}  # fmt: skip


def steps(layout: ParallelLayout, modes: tuple[str, ...] = tuple(MODES), **arguments: Any) -> dict[str, dict[str, Any]]:
    """Loss, gradients and counts of a step, by mode. Arguments are those of loss_and_gradients."""
    return {mode: _counted(layout, MODES[mode], arguments) for mode in modes}


def mutants(layout: ParallelLayout, modes: dict[str, str], **arguments: Any) -> dict[str, dict[str, Any]]:
    """The same with one mistake each in what is kept, by mutant.

    Args:
        modes: mutants to try, and the mode to try them in.
    """
    found = {}
    for name, mode in modes.items():
        module, old, new = MUTANTS[name]
        with mutated(f"mindspeed_vita.models.{module}", old, new):
            found[name] = _counted(layout, MODES[mode], arguments)
    return found


def _counted(layout: ParallelLayout, train: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    calls: Counter[str] = Counter()
    with _counting(calls):
        found = loss_and_gradients(layout, train=train, **arguments)
    sized = layout.with_ulysses(arguments.get("ulysses", 1), torch.device("cpu"))
    return {"found": found, "calls": dict(calls), "a pack keeps": kept_attention_bytes(make_recipe(sized, train=train))}


@contextmanager
def _counting(calls: Counter[str]) -> Iterator[None]:
    """Counts calls of attention's kernels and transfers of the ring, and the bytes and number of results that are kept at a time."""

    def counted(owner: Any, name: str) -> Any:
        function = getattr(owner, name)

        def call(*args: Any, **keywords: Any) -> Any:
            calls[name] += 1
            return function(*args, **keywords)

        return patch.object(owner, name, call)

    keep, take = KeptAttention.keep, KeptAttention.take

    def kept(self: KeptAttention, out: torch.Tensor, lse: torch.Tensor) -> None:
        calls["kept"] += 1
        calls["now"] += out.nbytes + lse.nbytes
        calls["most"] = max(calls["most"], calls["now"])
        keep(self, out, lse)

    def taken(self: KeptAttention) -> Any:
        pair = take(self)
        if pair is not None:
            calls["taken"] += 1
            calls["now"] -= sum(tensor.nbytes for tensor in pair)
        return pair

    with (
        counted(torch_native, "blocks_forward"),
        counted(torch_native, "blocks_backward"),
        counted(ring_exchange.Channel, "swap"),
        patch.object(KeptAttention, "keep", kept),
        patch.object(KeptAttention, "take", taken),
    ):
        yield
