"""Compares two checkpoints of any formats: architecture, names, shapes, and a hash of every whole tensor. One tensor is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from mindspeed_vita.checkpoint.native.step_folder import differing_keys
from mindspeed_vita.checkpoint.source import Source
from mindspeed_vita.files.digest import checksum
from mindspeed_vita.files.safetensors_file import tensor_bytes
from mindspeed_vita.files.shard_stream import Report
from mindspeed_vita.files.tensors import Spec


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was found; saved as verification.json."""

    formats: tuple[str, str]
    num_tensors: int
    """Tensors that both have."""
    num_parameters: int
    """Their elements."""
    types: dict[str, int]
    """Pairs of stored types, such as "float32, bfloat16", and how many tensors have them. The first's are cast to the second's."""
    problems: tuple[str, ...]
    """Every difference; empty where the two hold the same model."""
    xxh128: dict[str, str]
    """Of each tensor's elements in the second checkpoint's type, by native name."""

    @property
    def same(self) -> bool:
        """Nothing differs."""
        return not self.problems


def compare(first: Source, second: Source, report: Report) -> Comparison:
    """Compares by content.

    Args:
        first: a checkpoint; its tensors are cast to the types of the second's.
        second: a checkpoint.
        report: told of the bytes of the second that were compared.

    Raises:
        ValueError: a file of either is damaged.
    """
    problems = [
        f"model.{key}: {ours!r} in the first, {theirs!r} in the second"
        for key, (ours, theirs) in differing_keys(first.recipe.model, second.recipe.model).items()
    ]
    ours, theirs = first.weights.specs(), second.weights.specs()
    problems += [f"{name}: only in the first" for name in ours if name not in theirs]
    problems += [f"{name}: only in the second" for name in theirs if name not in ours]
    both = [name for name in theirs if name in ours]
    types: dict[str, int] = {}
    sums: dict[str, str] = {}
    for name in both:
        pair = ", ".join(str(spec.dtype).removeprefix("torch.") for spec in (ours[name], theirs[name]))
        types[pair] = types.get(pair, 0) + 1
    with ThreadPoolExecutor(1, thread_name_prefix="vita-hash") as hasher:
        for name in both:
            if ours[name].shape != theirs[name].shape:
                problems.append(f"{name}: {ours[name].shape} in the first, {theirs[name].shape} in the second")
                continue
            sums[name], line = _compare_tensor(name, first, second, theirs[name], hasher)
            problems += line
            report(theirs[name].nbytes)
    for source in (first, second):
        source.wait()
    return Comparison(
        formats=(first.format, second.format),
        num_tensors=len(both),
        num_parameters=sum(torch.Size(theirs[name].shape).numel() for name in both),
        types=types,
        problems=tuple(problems),
        xxh128=sums,
    )


def _compare_tensor(name: str, first: Source, second: Source, spec: Spec, hasher: ThreadPoolExecutor) -> tuple[str, list[str]]:
    left, right = first.weights[name].to(spec.dtype), second.weights[name]
    other = hasher.submit(_digest, left)
    mine = _digest(right)
    if other.result() == mine:
        return mine, []
    lines = list(_difference(left, right))
    return mine, [f"{name}: {', '.join(lines)}"]


def _difference(left: torch.Tensor, right: torch.Tensor) -> Iterator[str]:
    differing = (left != right) & ~(left.isnan() & right.isnan()) if left.is_floating_point() else left != right
    count = int(differing.sum())
    yield f"{count:,} of {left.numel():,} elements differ"
    if count:
        yield f"by up to {float((left[differing].double() - right[differing].double()).abs().max()):.3g}"


def _digest(tensor: torch.Tensor) -> str:
    return str(checksum(tensor_bytes(tensor)).hexdigest())
