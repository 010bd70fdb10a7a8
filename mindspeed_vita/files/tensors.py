"""Named tensors that are read only when they are asked for, with types and shapes known beforehand."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Optional

import torch


@dataclass(frozen=True)
class Spec:
    """Type and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def meta(self) -> torch.Tensor:
        """A tensor like it without data (meta device)."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    @staticmethod
    def of(tensor: torch.Tensor) -> Spec:
        """That of a tensor."""
        return Spec(tensor.dtype, tuple(tensor.shape))


class Tensors(Mapping[str, torch.Tensor]):
    """A mapping whose values are read at each access. Keep no more of them than you need: only mapped files take no memory."""

    @abstractmethod
    def specs(self) -> Mapping[str, Spec]:
        """Type and shape of every tensor, in the mapping's order, without reading any."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {name: spec.shape for name, spec in self.specs().items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs())

    def __len__(self) -> int:
        return len(self.specs())

    def __contains__(self, name: object) -> bool:
        return name in self.specs()


class Made(Tensors):
    """Tensors that a function makes.

    Args:
        specs: type and shape of each, in order.
        make: name to tensor.
    """

    def __init__(self, specs: Mapping[str, Spec], make: Callable[[str], torch.Tensor]) -> None:
        self._specs = dict(specs)
        self._make = make

    def specs(self) -> Mapping[str, Spec]:
        """Type and shape of every tensor."""
        return self._specs

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._specs:
            raise KeyError(name)
        return self._make(name)


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors have the same type, shape and bits; unlike torch.equal, a NaN equals itself."""
    if Spec.of(left) != Spec.of(right):
        return False
    return torch.equal(*(tensor.contiguous().view(-1).view(torch.uint8) for tensor in (left, right)))


def held(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Tensors in memory, or those of a mapping that is lazy already."""
    if isinstance(tensors, Tensors):
        return tensors
    return Made({name: Spec.of(tensor) for name, tensor in tensors.items()}, tensors.__getitem__)


def joined(*parts: Mapping[str, torch.Tensor]) -> Tensors:
    """Several mappings as one; a later one's tensor replaces an earlier one's of the same name, at its place."""
    sources = {name: part for part in parts for name in part}
    specs = {name: spec for part in map(held, parts) for name, spec in part.specs().items()}
    return Made(specs, lambda name: sources[name][name])


def cast(tensors: Mapping[str, torch.Tensor], dtype: Optional[torch.dtype]) -> Tensors:
    """The same tensors in another type; None keeps theirs."""
    source = held(tensors)
    if dtype is None:
        return source
    return Made({name: Spec(dtype, spec.shape) for name, spec in source.specs().items()}, lambda name: source[name].to(dtype))


@dataclass(frozen=True)
class Group:
    """Tensors that are made together, such as the three that one fused weight becomes."""

    specs: Mapping[str, Spec]
    """Names, types and shapes, in order."""
    make: Callable[[], Iterable[torch.Tensor]]
    """Makes them, in the same order; each may be dropped before the next is made."""

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(spec.nbytes for spec in self.specs.values())


def one_by_one(tensors: Tensors) -> list[Group]:
    """Every tensor as a group of its own."""

    def group(name: str, spec: Spec) -> Group:
        return Group({name: spec}, lambda: (tensors[name],))

    return [group(name, spec) for name, spec in tensors.specs().items()]
