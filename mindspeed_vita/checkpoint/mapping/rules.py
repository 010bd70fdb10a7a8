"""Weight names and layouts, native <-> Hugging Face: typed rules over full (unsharded) tensors, applied by one engine.

The tables of rules per family are in families.py. Nothing here reads or writes files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One native tensor and the Hugging Face tensor or tensors it corresponds to. The base rule copies."""

    native: str
    """Native name."""
    hf: tuple[str, ...]
    """Hugging Face names, in the order of the layout."""

    def to_hf(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Native tensor -> one tensor per name in `hf`."""
        return (tensor,)

    def to_native(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """One tensor per name in `hf` -> native tensor."""
        return tensors[0]


@dataclass(frozen=True, kw_only=True)
class LeadingOne(Rule):
    """The Hugging Face tensor has one more leading axis, of size 1."""

    def to_hf(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (tensor.unsqueeze(0),)

    def to_native(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        if tensors[0].shape[0] != 1:
            raise ValueError(f"{self.hf[0]}: found shape {tuple(tensors[0].shape)}, expected a leading axis of size 1")
        return tensors[0].squeeze(0)


@dataclass(frozen=True, kw_only=True)
class Flat(Rule):
    """The Hugging Face tensor has one axis, the native one more of them."""

    shape: tuple[int, ...]
    """Of the native tensor."""

    def to_hf(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (tensor.reshape(-1),)

    def to_native(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return tensors[0].reshape(self.shape)


@dataclass(frozen=True, kw_only=True)
class GroupedQKV(Rule):
    """Fused rows per key/value group [queries of the group, key, value] <-> separate query, key and value."""

    num_heads: int
    """Query heads."""
    num_groups: int
    """Key/value heads."""

    def to_hf(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        per_group = self.num_heads // self.num_groups
        head_dim = self._head_dim(tensor.shape[0], self.num_heads + 2 * self.num_groups)
        grouped = tensor.view(self.num_groups, per_group + 2, head_dim, *tensor.shape[1:])
        parts = grouped.split([per_group, 1, 1], dim=1)
        return tuple(part.reshape(-1, *tensor.shape[1:]) for part in parts)

    def to_native(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        query, key, value = tensors
        head_dim = self._head_dim(query.shape[0], self.num_heads)
        for name, part in zip(self.hf[1:], (key, value)):
            if part.shape[0] != self.num_groups * head_dim:
                raise ValueError(f"{name}: found {part.shape[0]} rows, expected {self.num_groups} heads of {head_dim}")
        rest = query.shape[1:]
        grouped = [part.reshape(self.num_groups, -1, head_dim, *rest) for part in (query, key, value)]
        return torch.cat(grouped, dim=1).reshape(-1, *rest)

    def _head_dim(self, rows: int, heads: int) -> int:
        if rows % heads:
            raise ValueError(f"{self.native}: {rows} rows do not divide into {heads} heads; the config is of another model")
        return rows // heads


@dataclass(frozen=True, kw_only=True)
class HeadMajorQKV(Rule):
    """Rows ordered (heads, 3, head width) natively, (3, heads, head width) in Hugging Face."""

    num_heads: int
    """Attention heads."""

    def to_hf(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self._swap(tensor, self.num_heads, 3),)

    def to_native(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return self._swap(tensors[0], 3, self.num_heads)

    def _swap(self, tensor: torch.Tensor, outer: int, inner: int) -> torch.Tensor:
        if tensor.shape[0] % (outer * inner):
            raise ValueError(f"{self.native}: {tensor.shape[0]} rows do not divide into 3 x {self.num_heads} heads")
        return tensor.view(outer, inner, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


@dataclass(frozen=True, kw_only=True)
class Gated(Rule):
    """Native rows [gate; up] <-> two tensors."""

    def to_hf(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.chunk(2, dim=0))

    def to_native(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        if tensors[0].shape != tensors[1].shape:
            raise ValueError(f"{self.hf[0]} {tuple(tensors[0].shape)} and {self.hf[1]} {tuple(tensors[1].shape)} must have one shape")
        return torch.cat(list(tensors), dim=0)


def check_names(found: Iterable[str], expected: Iterable[str], *, side: str) -> None:
    """Every expected name is there and no other.

    Raises:
        ValueError: with the missing and the unexpected names.
    """
    found, expected = set(found), set(expected)
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    if missing or unexpected:
        parts = [f"{len(names)} {what}: {_some(names)}" for what, names in (("missing", missing), ("unexpected", unexpected)) if names]
        raise ValueError(f"the {side} weights do not fit this architecture; {'; '.join(parts)}")


def check_shapes(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], *, side: str) -> None:
    """As check_names, and every tensor has its shape.

    Raises:
        ValueError: with the missing, the unexpected and the names of another shape.
    """
    check_names(found, expected, side=side)
    other = [f"{name} {found[name]}, expected {expected[name]}" for name in expected if found[name] != expected[name]]
    if other:
        raise ValueError(f"the {side} weights do not fit this architecture; {len(other)} of another shape: {_some(other)}")


def convert_to_hf(native: Mapping[str, torch.Tensor], rules: Sequence[Rule]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) in the order of the rules.

    Raises:
        ValueError: a native tensor without a rule, or a rule without its tensor.
    """
    check_names(native, (rule.native for rule in rules), side="native")
    for rule in rules:
        yield from zip(rule.hf, rule.to_hf(native[rule.native]))


def convert_to_native(hf: Mapping[str, torch.Tensor], rules: Sequence[Rule]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (native name, tensor) in the order of the rules. `hf` is read once per name, so it may be lazy.

    Raises:
        ValueError: a Hugging Face tensor without a rule, or a rule without its tensors.
    """
    check_names(hf, (name for rule in rules for name in rule.hf), side="Hugging Face")
    for rule in rules:
        yield rule.native, rule.to_native([hf[name] for name in rule.hf])


def _some(names: Sequence[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
