"""Compares the hidden states behind every layer, and the logits, of two checkpoints."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Optional

import torch

from mindspeed_vita.checkpoint.native.step_folder import differing_keys
from mindspeed_vita.checkpoint.source import Source
from mindspeed_vita.checks.logits.hf_sides import hf_side
from mindspeed_vita.checks.logits.lockstep import Lane, points
from mindspeed_vita.checks.logits.native_side import native_side
from mindspeed_vita.checks.logits.probe import Probe, make_probe
from mindspeed_vita.checks.logits.side import Side
from mindspeed_vita.files.shard_stream import Report

ALONE_TOLERANCE = 2e-5
"""Largest share (see Difference) by which a layer may differ that gets the same input on both sides: fp32 sums in another order."""
FROM_START_TOLERANCE = 1e-2
"""The same for a pass from pictures and tokens to logits, whose rounding grows from layer to layer."""
_MMAP_THRESHOLD = -3
"""mallopt's name for the size from which a block has memory of its own (M_MMAP_THRESHOLD)."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two sides are from each other at a point.

    A share is taken of an element's own size and of its row's, since a few elements of a hidden state may be thousands of times larger
    than the rest: neither may they hide a fault of the others, nor their own rounding count as one.
    """

    largest: float
    """Largest difference of two elements."""
    share: float
    """The same, where each difference is divided by the size of its element plus the root mean square of that element's row."""

    def with_more(self, other: Difference) -> Difference:
        """The larger differences of two parts of a point."""
        return Difference(largest=max(self.largest, other.largest), share=max(self.share, other.share))


@dataclass(frozen=True, kw_only=True)
class Point:
    """A place in the model where both sides were compared."""

    name: str
    """Native name of the layer; vision.embeddings and language.decoder.embeddings are what goes into the first layers."""
    alone: Difference
    """Of the layer itself: the second side's got the output of the first side's layer before."""
    from_start: Difference
    """Of two passes that are independent of each other."""

    @property
    def same_alone(self) -> bool:
        """The layer computes the same, but for another order of summation."""
        return self.alone.share <= ALONE_TOLERANCE

    @property
    def same(self) -> bool:
        """So it does, and what comes before it, too."""
        return self.same_alone and self.from_start.share <= FROM_START_TOLERANCE


@dataclass(frozen=True, kw_only=True)
class LogitsComparison:
    """What was found; saved as verification.json."""

    formats: tuple[str, str]
    computed_by: tuple[str, str]
    """Whose code computed each side."""
    tokens: int
    """Tokens of the probe, those of its pictures included."""
    tolerances: tuple[float, float]
    """Largest shares that count as the same: of a layer alone, and from the start."""
    points: tuple[Point, ...]
    """In the order of the forward pass."""
    first_difference: str
    """The first layer that computes something else; empty where there is none."""
    problems: tuple[str, ...]
    """Every difference of the settings, and every layer that differs; empty where both compute the same."""

    @property
    def same(self) -> bool:
        """Nothing differs."""
        return not self.problems


def compare_logits(
    folders: tuple[Path, Path], sources: tuple[Source, Source], report: Report, *, remote_code: bool = False
) -> LogitsComparison:
    """Runs both sides over the probe in float32 on the CPU. One layer of one side is in memory at a time.

    Args:
        folders: the checkpoints.
        sources: the same, opened. The first one's tensors are cast to the types of the second's.
        report: told of the bytes of the second that were used.
        remote_code: run the modelling code that lies in a folder, where it holds some.

    Raises:
        ValueError: other names, shapes or sizes of pictures, so that there is no layer to compare with; or a damaged file.
    """
    _check_comparable(folders, sources)
    _give_freed_memory_back()
    with ExitStack() as stack:
        first, second = (_open(folders[n], sources[n], remote_code, stack) for n in (0, 1))
        probe = make_probe(sources[0].recipe.model, {*first.avoid, *second.avoid})
        alone, from_start = (_run(first, second, sources[1], probe, report, same_inputs=same_inputs) for same_inputs in (True, False))
        for source in sources:
            source.wait()
    found = [Point(name=name, alone=difference, from_start=from_start[name]) for name, difference in alone.items()]
    return LogitsComparison(
        formats=(sources[0].format, sources[1].format),
        computed_by=(first.computed_by, second.computed_by),
        tokens=len(probe.tokens_T),
        tolerances=(ALONE_TOLERANCE, FROM_START_TOLERANCE),
        points=tuple(found),
        first_difference=next((point.name for point in found if not point.same_alone), ""),
        problems=tuple(_problems(sources, found)),
    )


def _give_freed_memory_back() -> None:
    """Large blocks go back to the system when they are freed, for the rest of the process.

    Otherwise glibc keeps freed blocks of up to 32 MB for the thread that had them, and hardly uses them again for torch's aligned blocks:
    memory would grow with every layer. Other C libraries have no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 17)


def _check_comparable(folders: tuple[Path, Path], sources: tuple[Source, Source]) -> None:
    """Refuses models whose layers do not correspond."""
    ours, theirs = (source.weights.shapes() for source in sources)
    found = [f"{name} is {ours.get(name, 'absent')} there, {theirs.get(name, 'absent')} here" for name in {**ours, **theirs}
             if ours.get(name) != theirs.get(name)]  # fmt: skip
    for what in ("tokens_per_tile", "vision.tile_size", "vision.patch_size"):
        left, right = (attrgetter(what)(source.recipe.model) for source in sources)
        found += [f"{what} is {left} there, {right} here"] if left != right else []
    if found:
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        raise ValueError(
            f"{folders[0]} and {folders[1]} are of different architectures: {'; '.join(found[:4])}{more}. Their layers cannot be compared; "
            "--level hash lists all differences"
        )


def _open(folder: Path, source: Source, remote_code: bool, stack: ExitStack) -> Side:
    side = hf_side(folder, source, remote_code=remote_code)
    if side is None:
        side, context = native_side(folder, source)
        stack.enter_context(context)
    return side


def _run(first: Side, second: Side, target: Source, probe: Probe, report: Report, *, same_inputs: bool) -> dict[str, Difference]:
    types = {name: spec.dtype for name, spec in target.weights.specs().items()}
    found: dict[str, Difference] = {}
    one, other = (points(partial(side.run, types, told, probe), "vita-logits") for side, told in ((first, _nobody), (second, report)))
    with closing(one), closing(other):
        left, right = next(one, None), next(other, None)
        while left is not None and right is not None:
            assert left[0] == right[0], f"the passes parted: {left[0]} and {right[0]}"
            apart = measure(left[1], right[1])
            found[left[0]] = found[left[0]].with_more(apart) if left[0] in found else apart
            reply = left[1] if same_inputs else None
            del left, right
            left, right = next(one, None), _after(other, reply)
        assert left is None and right is None, "one pass has more points than the other"
    return found


def _after(lane: Lane, reply: Optional[torch.Tensor]) -> Optional[tuple[str, torch.Tensor]]:
    """As next, with what the pass goes on with."""
    try:
        return lane.send(reply)
    except StopIteration:
        return None


def _nobody(size: int) -> None:
    """The first side's bytes are not told."""


def measure(left: torch.Tensor, right: torch.Tensor) -> Difference:
    """How far the values of two sides [rows, width] are from each other."""
    assert left.shape == right.shape, (left.shape, right.shape)
    apart = (left - right).abs()
    row = right.square().mean(-1, keepdim=True).sqrt()
    shares = torch.where(apart == 0, apart, apart / (right.abs() + row))
    difference, share = float(apart.max()), float(shares.max())
    lost = math.isnan(difference) or math.isnan(share)
    return Difference(largest=math.inf if lost else difference, share=math.inf if lost else share)


def _problems(sources: tuple[Source, Source], found: Sequence[Point]) -> Iterator[str]:
    for key, (ours, theirs) in differing_keys(sources[0].recipe.model, sources[1].recipe.model).items():
        yield f"model.{key}: {ours!r} in the first, {theirs!r} in the second"
    alone = [point.name for point in found if not point.same_alone]
    from_start = [point.name for point in found if not point.same]
    if alone:
        yield f"{alone[0]} computes something else" + (f", and so do {len(alone) - 1} more behind it" if len(alone) > 1 else "")
    elif from_start:
        yield f"no layer alone computes something else, but from the start on {from_start[0]} differs"
