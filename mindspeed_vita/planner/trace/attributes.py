"""Keeps what is written on parameters while a model of tensors without memory moves to its device and precision.

torch.nn.Module gives a real parameter new data and leaves its attributes. A parameter without memory it swaps for another, and the
attributes go with the old one. megatron-core reads them: which gradients to add up over tensor parallelism, say.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def attributes_stay() -> Iterator[None]:
    """For a while, a parameter that is swapped for another keeps the attributes that the other does not have."""
    swap = torch.utils.swap_tensors

    def keeping(parameter: torch.Tensor, other: torch.Tensor) -> None:
        written = dict(vars(parameter))
        swap(parameter, other)
        for name, value in written.items():
            vars(parameter).setdefault(name, value)

    torch.utils.swap_tensors = keeping
    try:
        yield
    finally:
        torch.utils.swap_tensors = swap
