"""One run of `vita train --engine hf`: data, start weights, Trainer, and the export at the end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Optional

import torch
import torch.distributed as dist

from mindspeed_vita.checkpoint import lineage
from mindspeed_vita.checkpoint.conversion import IN_MEMORY
from mindspeed_vita.checkpoint.hf.config import model_config
from mindspeed_vita.checkpoint.hf.export import VERIFICATION, export_hf
from mindspeed_vita.checkpoint.hf.load import read_config
from mindspeed_vita.checkpoint.hf.processor import read_json
from mindspeed_vita.checkpoint.mapping.families import family_rules
from mindspeed_vita.checkpoint.mapping.rules import convert_to_native
from mindspeed_vita.checkpoint.native.ranks import on_first_rank
from mindspeed_vita.checkpoint.native.step_folder import differing_keys, saved_recipe
from mindspeed_vita.checkpoint.source import SourceOptions, current_folder, open_source
from mindspeed_vita.config import Recipe
from mindspeed_vita.data.templates import get_template
from mindspeed_vita.data.tokenizer import load_tokenizer
from mindspeed_vita.engine.adapter_base import find_run_base
from mindspeed_vita.engine.faults import open_failed_samples
from mindspeed_vita.engine.feed import first_rank_first, open_dataset, open_loader
from mindspeed_vita.engine.metrics import open_log
from mindspeed_vita.engine.objective import build_objective
from mindspeed_vita.engine.progress import Progress
from mindspeed_vita.engine.run_lock import held_by_first_rank, put_in_order, run_lock
from mindspeed_vita.engine.session import distributed
from mindspeed_vita.engine.stopping import StopRequest
from mindspeed_vita.engine.watchdog import WatchedSteps, watched
from mindspeed_vita.integration.hf_trainer import adapters, checkpoints, fully_sharded, refusals
from mindspeed_vita.integration.hf_trainer.deepspeed_file import deepspeed_settings
from mindspeed_vita.integration.hf_trainer.settings import FSDP2, check_packages, naming_the_compiler, sharing_of, training_arguments
from mindspeed_vita.integration.hf_trainer.start_weights import check_same_architecture, named_start
from mindspeed_vita.integration.hf_trainer.universal import make_universal
from mindspeed_vita.parallel.build import DTYPES
from mindspeed_vita.platform import Platform, get_platform

_START = "start"


@dataclass(frozen=True, kw_only=True)
class HfResult:
    """How a run ended."""

    step: int
    """Steps done."""
    first_loss: Optional[float]
    """Loss of the run's first step, on rank 0."""
    last_loss: Optional[float]
    tokens_per_second: float
    """Mean over this process's steps but the first, all ranks together; 0 when it made none."""
    peak_memory: int
    """Highest use of any rank, bytes."""
    sharing: str
    """See settings.sharing_of."""
    stopped_by: int
    """Number of the signal that ended the run; 0: it reached its last step."""
    export: Optional[Path]
    """The weights in our Hugging Face layout, or the adapters in peft's; None where a signal ended the run."""


def train(recipe: Recipe, *, deepspeed: str = "", fsdp: bool = False, stop: Optional[StopRequest] = None) -> HfResult:
    """Train a recipe to its last step, from the newest checkpoint in its folder if there is one, and export the weights.

    Args:
        recipe: the run. Every rank passes the same.
        deepspeed: zero1, zero2, zero3, a JSON file, or "" for none.
        fsdp: share weights, gradients and optimizer by torch's FSDP2.
        stop: what `stop_signals` gives; a signal then ends the run after its step.

    Raises:
        ValueError: a setting, the data, or a checkpoint does not fit; one message that says what to do.
        TrainingDiverged: the loss is not finite any more.
    """
    refusals.check(recipe)
    settings = deepspeed_settings(deepspeed)
    check_packages(deepspeed)
    sharing = sharing_of(settings, fsdp=fsdp)
    if sharing == FSDP2 and recipe.lora.rank:
        raise ValueError("--fsdp: adapters are not shared by FSDP2 here; use --deepspeed zero3, or neither")
    platform = get_platform()
    own, lock = not dist.is_initialized(), run_lock(recipe)
    with (
        distributed(recipe, platform) as layout,
        watched(recipe, own=own, release=partial(put_in_order, lock), newest=checkpoints.newest) as steps,
        held_by_first_rank(lock),
    ):
        return _train(recipe, layout, platform, settings, sharing, stop or StopRequest(), steps)


def _train(
    recipe: Recipe,
    layout: Any,
    platform: Platform,
    settings: Optional[dict[str, Any]],
    sharing: str,
    stop: StopRequest,
    steps: WatchedSteps,
) -> HfResult:
    directory, leads = Path(recipe.checkpoint.directory), dist.get_rank() == 0
    newest = checkpoints.newest(directory)
    if newest is not None and not recipe.checkpoint.resume:
        raise ValueError(
            f"checkpoint.resume is false, but {directory} holds {newest.name}; set it to true to continue, or choose another "
            "checkpoint.directory"
        )
    base = find_run_base(recipe, newest, None if newest is None else saved_recipe(newest))
    if base is not None:
        recipe = base.recipe
    universal = newest is not None and checkpoints.needs_universal(newest, sharing=sharing, ranks=dist.get_world_size())
    if newest is not None and settings is not None and universal:
        first_rank_first(partial(make_universal, newest))  # it may take longer than a collective waits
        settings["checkpoint"] = {**settings.get("checkpoint", {}), "load_universal": True}
    # DeepSpeed must be set up before the model is loaded, and both before Trainer
    arguments = training_arguments(recipe, layout, platform, deepspeed=settings, fsdp=sharing == FSDP2)
    if settings is not None:
        import deepspeed

        deepspeed.init_distributed(dist_backend=platform.collectives)
    from mindspeed_vita.integration.hf_trainer.packed_model import build_packed_model
    from mindspeed_vita.integration.hf_trainer.step_watch import StepWatch
    from mindspeed_vita.integration.hf_trainer.trainer import PackTrainer

    dataset = open_dataset(recipe, layout)
    step, known = 0, tuple[int, ...]()
    if newest is not None:
        state = checkpoints.read_state(newest, recipe, fingerprint=dataset.fingerprint, sharing=sharing)
        step, known = state.step, state.failed_samples
    fixed = None if base is None else base.base.folder
    start = first_rank_first(lambda: start_folder(recipe, fixed, resumed=newest is not None))
    origins = (current_folder(Path(recipe.checkpoint.init_from)),) if base is None else base.origins
    beginnings: list[lineage.Lineage] = []  # read now: what a run starts from may change or go while it trains
    on_first_rank(lambda: beginnings.append(lineage.of_beginning(recipe, data=dataset.fingerprint, origins=origins)))
    model = build_packed_model(start, recipe, layout, platform, sharing=sharing)
    if base is not None:
        model = adapters.adapted(model, recipe, base.matrices())
    failed = open_failed_samples(recipe, dataset, step=step, known=known)
    log = open_log(recipe, directory, step=step) if leads else None
    every = max(recipe.logging.every, recipe.train.steps // 20)
    progress = Progress(recipe.name, steps=recipe.train.steps, done=step, bar=recipe.logging.progress, every=every) if leads else None
    if progress is not None:
        progress.line(f"{recipe.name}: {dataset.describe()}")
        progress.line(f"{recipe.name}: {'continuing from' if newest else 'starting from'} {newest or start} ({sharing})")
        if base is not None:
            progress.line(f"{recipe.name}: {base.note if newest else base.describe()}")
    batches = open_loader(dataset, recipe, layout, start_pack=step * recipe.train.global_batch)
    watch = StepWatch(steps)
    trainer = PackTrainer(
        recipe,
        layout,
        platform,
        batches=batches,
        objective=build_objective(recipe, layout, dataset),
        failed=failed,
        fingerprint=dataset.fingerprint,
        sharing=sharing,
        universal=universal,
        stop=stop,
        log=log,
        progress=progress,
        watch=watch,
        model=model,
        args=arguments,
    )
    export = checkpoints.trained(recipe)
    unfinished = step < recipe.train.steps or not checkpoints.is_of_step(export, step)
    try:
        with stop.finishing_steps():
            if unfinished:  # after the last step it loads the checkpoint, and trains nothing
                with naming_the_compiler():
                    trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    finally:
        watch.close()
        batches.close()
        if progress is not None:
            progress.close()
        if log is not None:
            log.close()
    if unfinished and not stop.agreed:
        weights = whole_weights(trainer) if base is None else adapters.trained_matrices(trainer, deepspeed=settings is not None)
        done = trainer.state.global_step

        def write() -> None:
            record = replace(beginnings[0], step=done)
            if base is None:
                write_export(weights, recipe, export, record)
            else:
                adapters.write_adapter(weights, recipe, export, start, record)

        on_first_rank(write)
    peaks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(peaks, platform.memory().peak)
    warm = trainer.busy[1:] or trainer.busy
    return HfResult(
        step=max(step, trainer.state.global_step),
        first_loss=log.first_loss if log else None,
        last_loss=log.last_loss if log else None,
        tokens_per_second=recipe.train.global_batch * recipe.data.seq_length * len(warm) / sum(warm) if warm else 0.0,
        peak_memory=max(peaks),
        sharing=sharing,
        stopped_by=stop.agreed,
        export=export if export.is_dir() and not stop.agreed else None,
    )


def start_folder(recipe: Recipe, base: Optional[Path], *, resumed: bool) -> Path:
    """An export of the weights that a run starts from. They may be one; other formats are exported once.

    Args:
        recipe: the run.
        base: of the run's adapters; None: checkpoint.init_from is what it starts from.
        resumed: the run goes on from a checkpoint of its own, which has the weights. Then other ones than at the start may be named.

    Raises:
        ValueError: nothing to start from, another architecture, or an export that is there was made from other weights.
    """
    origin = named_start(recipe, base)
    source = open_source(origin, SourceOptions(tokenizer=recipe.data.tokenizer))
    check_same_architecture(origin, source.recipe.model, recipe.model)
    source.wait()
    own = source.format == "hf" and str(read_config(origin).get("model_type", "")).startswith("long_vita")
    if own and not differing_keys(model_config(read_config(origin)), recipe.model):
        return origin
    folder = Path(recipe.checkpoint.directory) / _START
    if folder.is_dir():
        made_from = read_json(folder / VERIFICATION).get("identity")
        if made_from != source.identity() and (base is not None or not resumed):
            raise ValueError(
                f"{folder} is an export of other weights than those of {origin}; remove it, and it is made anew, or choose another "
                "checkpoint.directory"
            )
    else:
        record = lineage.converted("hf", {}, [lineage.of_checkpoint(origin)])
        write_export(source.weights, recipe, folder, record, identity=source.identity())
    return folder


def write_export(native: Any, recipe: Recipe, folder: Path, record: lineage.Lineage, identity: str = "") -> None:
    """Writes weights by native name in our Hugging Face layout, with their record; an earlier export of the same run is replaced.

    Args:
        native: the weights.
        recipe: of the run.
        folder: to write.
        record: where the weights come from.
        identity: of the checkpoint that they are from, see Source.identity.
    """
    tokenizer = load_tokenizer(recipe.data.tokenizer, get_template(recipe.data.template))
    export_hf(native, recipe, folder, tokenizer=tokenizer, conversion=replace(IN_MEMORY, lineage=record, identity=identity))


def whole_weights(trainer: Any) -> dict[str, torch.Tensor]:
    """Native names and whole tensors in the recipe's precision, in host memory of rank 0; empty on the others. Collective."""
    if trainer.sharing == FSDP2:
        state = fully_sharded.whole_weights(trainer.model)
    else:
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if dist.get_rank() != 0:
        return {}
    recipe = trainer.recipe
    dtype = DTYPES[recipe.train.precision]
    names = {name.removeprefix("module."): tensor.detach().cpu().to(dtype) for name, tensor in state.items()}
    if recipe.model.language.tie_embeddings:
        names.pop("lm_head.weight", None)
    return dict(convert_to_native(names, family_rules("long_vita", recipe.model)))
