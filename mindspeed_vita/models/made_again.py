"""Results that the backward pass makes again instead of keeping them: `made_again` computes one, `not_saved` wraps its consumer.

    product = made_again(swiglu, gate_and_up)
    with not_saved(product):
        output = linear(product)

The linear layer wants its input for the gradient of its weight. It gets one that is made then. So the consumer itself never runs twice,
which is what recomputing both in one checkpoint would do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Optional

import torch

Make = Callable[[torch.Tensor], torch.Tensor]


class _Recipe:
    """How a result is made, and the result while the backward pass needs it."""

    def __init__(self, make: Make, source: torch.Tensor) -> None:
        self._make = make
        self._source: Optional[torch.Tensor] = source.detach().requires_grad_(source.requires_grad)
        self._made: Optional[torch.Tensor] = None

    def result(self) -> torch.Tensor:
        """The result with its graph back to the source, made at the first call."""
        if self._source is None:
            raise RuntimeError("a second backward pass over a graph whose results were made again and freed; run the forward pass again")
        if self._made is None:
            with torch.enable_grad():
                self._made = self._make(self._source)
        return self._made

    def backward(self, grad: torch.Tensor) -> Optional[torch.Tensor]:
        """The gradient of the source; those of parameters are accumulated. Frees everything."""
        made, source = self.result(), self._source
        self._made = self._source = None
        torch.autograd.backward(made, grad)
        assert source is not None
        return source.grad


class _MadeAgain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: torch.Tensor, make: Make, recipe: _Recipe) -> torch.Tensor:
        ctx.recipe = recipe
        return make(source)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Optional[torch.Tensor], ...]:
        return ctx.recipe.backward(grad), None, None


def made_again(make: Make, source: torch.Tensor) -> torch.Tensor:
    """make(source), of which the backward pass needs only the source.

    Args:
        make: must give the same result each time, so it draws no random numbers. It may use parameters.
        source: kept until the backward pass. It must require a gradient if a parameter of `make` does.
    """
    recipe = _Recipe(make, source)
    result: torch.Tensor = _MadeAgain.apply(source, make, recipe)
    result.recipe = recipe  # type: ignore[attr-defined]
    return result


@contextmanager
def not_saved(result: torch.Tensor) -> Iterator[None]:
    """Within it, a result of `made_again` that autograd saves for the backward pass is not kept. Other tensors are kept as always."""
    recipe: Optional[_Recipe] = getattr(result, "recipe", None)
    if recipe is None:
        yield
        return
    storage = result.untyped_storage()._cdata

    def pack(saved: torch.Tensor) -> Any:
        if saved.untyped_storage()._cdata != storage:
            return saved
        return recipe, saved.size(), saved.stride(), saved.storage_offset()

    def unpack(packed: Any) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        again, size, stride, offset = packed
        return again.result().detach().as_strided(size, stride, offset)  # type: ignore[no-any-return]

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
