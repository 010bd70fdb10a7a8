"""Writes whole native tensors as a MindSpeed-LLM or Megatron checkpoint (--ckpt-format torch) of any tensor and pipeline parallel size.

Weights only: the tracker says `release`, so Megatron starts at iteration 0 and looks for no optimizer. With an optimizer it names the
iteration, from which MindSpeed-LLM continues.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Optional

import torch

from mindspeed_vita.checkpoint.conversion import IN_MEMORY, Conversion
from mindspeed_vita.checkpoint.mapping.mindspeed_names import to_megatron, to_mindspeed
from mindspeed_vita.checkpoint.megatron.flat_buffers import SHARED, TABLE
from mindspeed_vita.checkpoint.megatron.layout import LAYER, part
from mindspeed_vita.checkpoint.megatron.optimizer_files import FLAT_FILE, group_keys
from mindspeed_vita.checkpoint.megatron.rank_files import RANK_FILE, TRACKER
from mindspeed_vita.checkpoint.megatron.write_optimizer import RankOptimizer, flat_content, order_of, plan_optimizer
from mindspeed_vita.checkpoint.training import Training
from mindspeed_vita.config import ParallelConfig, Recipe, recipe_to_dict
from mindspeed_vita.files.publish import Published, publish_folder
from mindspeed_vita.files.read_ahead import read_ahead
from mindspeed_vita.files.shard_stream import Finishing
from mindspeed_vita.files.tensors import Group, Spec, Tensors, cast, one_by_one
from mindspeed_vita.files.tensors import held as held_in_memory
from mindspeed_vita.files.torch_stream import write_torch
from mindspeed_vita.files.writing import write_bytes

RELEASE = "release"
_STATE = "_extra_state"


class WriteFailed(OSError):
    """A checkpoint could not be written; nothing appears under its name."""


@dataclass(frozen=True)
class RankPlan:
    """One file of a rank."""

    name: str
    """Relative to the folder."""
    groups: tuple[Group, ...]
    """Make the tensors, or the flat parts that they consist of, in the order of the file."""
    around: Callable[[Mapping[str, torch.Tensor]], Any]
    """Makes the saved object around the tensors."""
    joined: Optional[Mapping[str, Spec]] = None
    """The saved tensors, where the groups make parts of them."""

    @property
    def specs(self) -> Mapping[str, Spec]:
        """Types and shapes of the saved tensors."""
        return {name: spec for group in self.groups for name, spec in group.specs.items()} if self.joined is None else self.joined

    @property
    def nbytes(self) -> int:
        """Size of the tensors."""
        return sum(group.nbytes for group in self.groups)

    @property
    def fingerprint(self) -> str:
        """Differs where the content is laid out differently."""
        parts = [(name, spec) for group in self.groups for name, spec in group.specs.items()]
        return hashlib.sha256(repr((parts, sorted(self.specs.items()))).encode()).hexdigest()


def write_megatron(
    weights: Tensors,
    recipe: Recipe,
    output: Path,
    *,
    tp: int,
    pp: int,
    fused_norms: bool,
    dtype: Optional[torch.dtype] = None,
    training: Optional[Training] = None,
    conversion: Conversion = IN_MEMORY,
) -> int:
    """Writes the files of all ranks; the folder appears whole or not at all.

    Args:
        weights: whole tensors by native name.
        recipe: what the weights are of; goes into the files, with tp and pp.
        output: folder to make.
        tp: tensor parallel size.
        pp: pipeline parallel size.
        fused_norms: names of TransformerEngine's layers (Megatron-LM); otherwise those of plain layers (MindSpeed-LLM).
        dtype: type to store; None keeps each tensor's.
        training: what a run continues from; None writes weights to start from.
        conversion: where the weights come from, and who is told how far it is.

    Returns:
        Number of files.

    Raises:
        ValueError: tp or pp does not fit the architecture, or the disk is too small.
        WriteFailed: the disk is full or not writable.
        Published: the folder is whole and in its place, but something failed after that.
    """
    split = ParallelConfig(tp=tp, pp=pp)  # equal stages, and the tower whole on each rank
    parallel = replace(recipe.parallel, tp=tp, pp=pp, vision_parallel=split.vision_parallel, layer_split=split.layer_split)
    told = replace(recipe, parallel=replace(parallel, virtual_stages=split.virtual_stages, stage_layers=split.stage_layers))
    state: dict[str, Any] = {"recipe": recipe_to_dict(told)}
    if conversion.lineage is not None:
        state["lineage"] = conversion.lineage.encode()
    if training is not None:
        state |= {"fingerprint": training.state.fingerprint, "failed_samples": sorted(training.state.failed_samples)}
    more = {_STATE: torch.frombuffer(bytearray(json.dumps(state), "utf-8"), dtype=torch.uint8)}
    ranks = plan_ranks(cast(weights, dtype), told, fused_norms=fused_norms, more=more, training=training)
    temporary = conversion.folder(output.with_name(f".{output.name}.partial"))
    tracked = RELEASE if training is None else str(training.state.step)

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with conversion.begun(temporary, ranks) as journal:
            report = conversion.start(sum(plan.nbytes for plan in ranks))
            whole = set(journal.done)
            report(sum(plan.nbytes for plan in ranks if plan.name in whole))
            with Finishing(temporary, journal) as finishing:
                for plan in (plan for plan in ranks if plan.name not in whole):
                    stream = read_ahead(plan.groups, lambda name: True)
                    write_torch(temporary / plan.name, plan.around, plan.specs, partial(_take, stream, plan.specs), report)
                    finishing.add(plan.name, "")
            conversion.before_publishing()
            write_bytes(temporary / TRACKER, tracked.encode())
            if output.is_dir():
                output.rmdir()  # empty, as the command made sure
            publish_folder(temporary, output, known_by=TRACKER, replace=True)
    except Published:
        raise
    except OSError as error:
        raise WriteFailed(f"cannot write {output}: {error}; {conversion.advice(error)}; nothing appears there") from error
    return len(ranks)


def _take(stream: Iterator[tuple[str, torch.Tensor]], specs: Mapping[str, Spec], name: str) -> Iterator[torch.Tensor]:
    """The parts of a saved tensor."""
    left = specs[name].nbytes
    while left:
        part, tensor = next(stream)
        left -= tensor.numel() * tensor.element_size()
        assert left >= 0, (name, part, left)
        yield tensor
        del tensor


def plan_ranks(
    weights: Tensors, recipe: Recipe, *, fused_norms: bool, more: Mapping[str, torch.Tensor], training: Optional[Training] = None
) -> list[RankPlan]:
    """What each rank holds, in the order of the files.

    Args:
        weights: whole tensors by native name.
        recipe: with the target's tp and pp.
        fused_norms: as write_megatron.
        more: tensors that every rank holds, under the names they have there.
        training: what a run continues from.

    Raises:
        ValueError: tp or pp does not fit the architecture, or the optimizer does not fit MindSpeed-LLM's.
    """
    language, tp, pp = recipe.model.language, recipe.parallel.tp, recipe.parallel.pp
    if language.num_layers % pp:
        raise ValueError(f"--pp {pp} does not divide {language.num_layers} layers; use a divisor")
    if language.num_kv_heads % tp:
        raise ValueError(f"--tp {tp} does not divide {language.num_kv_heads} key/value heads; use a divisor")
    rename = to_megatron if fused_norms else to_mindspeed
    iteration = RELEASE if training is None else f"iter_{training.state.step:07d}"
    keys = [] if training is None else sorted(set(group_keys(weights.shapes(), recipe).values()), reverse=True)
    plans = []
    for stage in range(pp):
        held = _held(weights, recipe, stage)
        for rank in range(tp):
            folder = f"{iteration}/mp_rank_{rank:02d}" + (f"_{stage:03d}" if pp > 1 else "")
            if training is None:
                optimizer = None
            else:
                held = order_of(held)
                optimizer = plan_optimizer(training, recipe, held, rank, keys)
            groups = tuple(_group(rename(local), weights, name, rank, tp) for local, name in held.items())
            own = (*groups, *one_by_one(held_in_memory(more)))
            around = partial(_around, tuple(name for group in own for name in group.specs), optimizer)
            plans.append(RankPlan(f"{folder}/{RANK_FILE}", (*own, *(optimizer.groups if optimizer else ())), around))
            if optimizer and optimizer.has_flat_file:
                plans.append(RankPlan(f"{folder}/{FLAT_FILE}", optimizer.flat, flat_content, optimizer.flat_specs))
    return plans


def _held(weights: Tensors, recipe: Recipe, stage: int) -> dict[str, str]:
    """The native names of a stage's weights, by the names with its own layer numbers."""
    language, pp = recipe.model.language, recipe.parallel.pp
    per_stage = language.num_layers // pp
    held: dict[str, str] = {}
    for name in weights:
        match = LAYER.fullmatch(name)
        if match is not None:
            if int(match[2]) // per_stage == stage:
                held[f"{match[1]}{int(match[2]) % per_stage}{match[3]}"] = name
        elif stage == (pp - 1 if name.startswith(("language.decoder.final", SHARED)) else 0):
            held[name] = name
    if stage == pp - 1 and pp > 1 and language.tie_embeddings:
        held[SHARED] = TABLE  # the last stage has a copy of the table
    return held


def _around(names: Sequence[str], optimizer: Optional[RankOptimizer], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The object in a rank's main file."""
    model = {"model": {name: tensors[name] for name in names}, "checkpoint_version": 3.0}
    return {**model, "iteration": 0} if optimizer is None else {**model, **optimizer.content(tensors)}


def _group(name: str, weights: Tensors, native: str, rank: int, size: int) -> Group:
    def make() -> tuple[torch.Tensor, ...]:
        return (part(native, weights[native], rank, size),)

    return Group({name: Spec.of(part(native, weights.specs()[native].meta(), rank, size))}, make)
