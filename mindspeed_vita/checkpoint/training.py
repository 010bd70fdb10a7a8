"""All of a run besides its weights that another format can hold: Adam's state, the steps done, the packs consumed, the schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.checkpoint.native.atomic import nothing
from mindspeed_vita.checkpoint.native.step_folder import TrainState
from mindspeed_vita.checkpoint.source import Source
from mindspeed_vita.config import Recipe
from mindspeed_vita.files.tensors import Tensors

MOMENTS = ("exp_avg", "exp_avg_sq")
MAIN = "param"
"""The fp32 parameters that an optimizer keeps next to bf16 weights."""
NOT_MOVED = "the states of the random generators"


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a run continues from."""

    optimizer: Tensors
    """exp_avg.NAME, exp_avg_sq.NAME and, in bf16 training, param.NAME for each trainable weight; whole, fp32."""
    state: TrainState
    """Where the run stands."""
    schedule: Optional[Mapping[str, Any]] = None
    """Megatron's schedule, as its checkpoint holds it; None where the recipe says it."""
    operations: float = 0.0
    """Floating-point operations that Megatron counted so far."""
    files: tuple[Path, ...] = ()
    """Where the optimizer lies."""
    wait: Callable[[], None] = field(default=nothing)
    """Ends when the checksums of these files were compared."""


def kinds(recipe: Recipe) -> tuple[str, ...]:
    """What an optimizer holds for each trainable weight."""
    return (MAIN, *MOMENTS) if recipe.train.precision == "bf16" else MOMENTS


def trainable(names: Iterable[str], recipe: Recipe) -> list[str]:
    """The native names whose modules train."""
    return [name for name in names if name.split(".", 1)[0] in recipe.train.modules]


def schedule_of(recipe: Recipe, packs: int) -> dict[str, Any]:
    """Megatron's schedule of learning rates for a recipe, as its checkpoints hold it: counted in samples.

    Args:
        recipe: a run.
        packs: consumed so far.
    """
    train = recipe.train
    # the arithmetic of the command line and of Megatron: it compares the results, which must agree to the last bit
    fraction = min(round(train.warmup_fraction * train.steps), train.steps - 1) / train.steps
    decay = train.steps * train.global_batch
    return {
        "max_lr": float(train.lr),
        "lr_warmup_steps": fraction * decay,
        "num_steps": packs,
        "lr_decay_style": "cosine",
        "lr_decay_steps": decay,
        "min_lr": train.min_lr,
        "start_wd": train.weight_decay,
        "end_wd": train.weight_decay,
        "wd_incr_style": "constant",
        "wd_incr_steps": decay,
    }


def holds_training(folder: Path, source: Source) -> bool:
    """Whether a checkpoint holds an optimizer that open_training could move.

    Raises:
        ValueError: a file of it cannot be read.
    """
    if source.format == "native":
        from mindspeed_vita.checkpoint.native.step_folder import find

        return (find(folder) / "state.json").is_file()
    from mindspeed_vita.checkpoint.megatron.dist_files import is_distributed
    from mindspeed_vita.checkpoint.megatron.rank_files import saved_layout

    if source.format != "mindspeed-llm" or is_distributed(folder):
        return False
    return saved_layout(folder).has_optimizer


def open_training(folder: Path, source: Source) -> Training:
    """Opens the optimizer of a checkpoint. Headers and small values are read, no optimizer tensor.

    Args:
        folder: as open_source's.
        source: what open_source made of it.

    Raises:
        ValueError: there is no optimizer, it is not of the weights' architecture, or it cannot be moved; the message says why.
    """
    from mindspeed_vita.checkpoint.megatron.dist_files import is_distributed

    if source.format == "mindspeed-llm" and is_distributed(folder):
        raise ValueError(f"--optimizer: {folder} is of --ckpt-format torch_dist, of which the weights are read only; leave --optimizer out")
    if not holds_training(folder, source):
        raise ValueError(f"--optimizer: {folder} holds weights only; leave --optimizer out")
    training = _native(folder) if source.format == "native" else _mindspeed(folder, source)
    _check_tensors(folder, training.optimizer, source)
    return training


def _native(folder: Path) -> Training:
    from mindspeed_vita.checkpoint.native import atomic, shards
    from mindspeed_vita.checkpoint.native.full_weights import compared_with_checksums
    from mindspeed_vita.checkpoint.native.step_folder import find, load_state

    step = find(folder)
    names = [name for name in atomic.recorded(step) if name.startswith("optimizer/")]
    wait = compared_with_checksums(step, names)
    try:
        tensors = shards.Reader(step / "optimizer").whole()
    except ValueError as error:
        raise atomic.damaged(step, [str(error)]) from error
    return Training(optimizer=tensors, state=load_state(step), files=tuple(sorted(step / name for name in names)), wait=wait)


def _mindspeed(folder: Path, source: Source) -> Training:
    from mindspeed_vita.checkpoint.megatron.optimizer_files import read_training

    return read_training(folder, source.recipe, source.weights.shapes())


def _check_tensors(folder: Path, optimizer: Tensors, source: Source) -> None:
    from mindspeed_vita.checkpoint.mapping.rules import check_shapes

    shapes = source.weights.shapes()
    needed = {f"{kind}.{name}": shapes[name] for kind in kinds(source.recipe) for name in trainable(shapes, source.recipe)}
    try:
        check_shapes(optimizer.shapes(), needed, side="optimizer's")
    except ValueError as error:
        raise ValueError(f"--optimizer: {folder}: {error}; train.modules is {list(source.recipe.train.modules)}") from error


def for_native(folder: Path, training: Training, recipe: Recipe) -> Training:
    """The same, once it is sure that a native checkpoint can say all of it.

    Raises:
        ValueError: the schedule is one that no recipe says.
    """
    if training.schedule is None:
        return training
    own = schedule_of(recipe, training.state.packs)
    other = [
        f"{key} is {training.schedule.get(key)!r}, the recipe's is {own[key]!r}" for key in own if training.schedule.get(key) != own[key]
    ]
    if other:
        raise ValueError(
            f"--optimizer: {folder} was trained with a schedule that its recipe does not say ({'; '.join(other)}), and a native "
            "checkpoint has no other; leave --optimizer out"
        )
    return replace(training, schedule=None)
