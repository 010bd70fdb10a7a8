"""The rules applied to tensors that are read one by one: types and shapes first, data only when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Optional

import torch

from mindspeed_vita.checkpoint.mapping.rules import Rule, check_names
from mindspeed_vita.files.tensors import Group, Made, Spec, Tensors

_SMALL = 1 << 20
"""Elements up to which a tensor's order is checked element by element, not row by row."""


def hf_groups(native: Tensors, rules: Sequence[Rule], dtype: Optional[torch.dtype] = None) -> list[Group]:
    """One group for each rule: the Hugging Face tensors that one native tensor becomes.

    Args:
        native: tensors by native name.
        rules: of the family that is written.
        dtype: type to store; None keeps each tensor's.

    Raises:
        ValueError: a native tensor without a rule, a rule without its tensor, or a rule that does not return what it was given.
    """
    check_names(native, (rule.native for rule in rules), side="native")
    specs = native.specs()
    groups = []
    for rule in rules:
        check_reversible(rule, specs[rule.native].shape)
        made = rule.to_hf(specs[rule.native].meta())
        held = {name: Spec(dtype or tensor.dtype, tuple(tensor.shape)) for name, tensor in zip(rule.hf, made, strict=True)}
        groups.append(Group(held, partial(_to_hf, native, rule, dtype)))
    return groups


def _to_hf(native: Tensors, rule: Rule, dtype: Optional[torch.dtype]) -> Iterator[torch.Tensor]:
    return (tensor if dtype is None else tensor.to(dtype) for tensor in rule.to_hf(native[rule.native]))


def native_from_hf(hf: Tensors, rules: Sequence[Rule]) -> Tensors:
    """The native tensors that a folder's tensors become, each read when it is asked for.

    Raises:
        ValueError: a Hugging Face tensor without a rule, a rule without its tensors, or shapes that do not fit a rule.
    """
    check_names(hf, (name for rule in rules for name in rule.hf), side="Hugging Face")
    specs = hf.specs()
    by_name = {rule.native: rule for rule in rules}
    made = {rule.native: Spec.of(rule.to_native([specs[name].meta() for name in rule.hf])) for rule in rules}
    return Made(made, lambda name: by_name[name].to_native([hf[there] for there in by_name[name].hf]))


def check_reversible(rule: Rule, shape: Sequence[int]) -> None:
    """Proves that a rule only moves elements, and that its inverse moves them back, on numbers in place of the elements.

    Rules move whole rows of large tensors, so a number for each row is enough there.

    Raises:
        ValueError: the inverse gives something else back.
    """
    if type(rule) is Rule:
        return
    count = torch.Size(shape).numel()
    places = torch.arange(count).view(*shape) if count <= _SMALL else torch.arange(shape[0]).view(-1, *(1,) * (len(shape) - 1))
    back = rule.to_native(rule.to_hf(places))
    if not torch.equal(back, places):
        raise ValueError(f"{rule.native} does not come back from {', '.join(rule.hf)} as it was: the rule {type(rule).__name__} is wrong")
