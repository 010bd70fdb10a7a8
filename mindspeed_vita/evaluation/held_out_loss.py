"""Held-out loss of a checkpoint of any format, as a run measures it: same packs, same model code, any layout."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import torch.distributed as dist

from mindspeed_vita.checkpoint.adapter.source import holds_adapters
from mindspeed_vita.checkpoint.megatron import rank_files
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.checkpoint.native.ranks import on_first_rank
from mindspeed_vita.checkpoint.source import Source, SourceOptions, open_source
from mindspeed_vita.choices import Precision
from mindspeed_vita.config import SUPERVISED, ParallelConfig, Recipe, load_recipe, recipe_of_checkpoint
from mindspeed_vita.config.recompute import without_recomputation
from mindspeed_vita.data.prepare import index_folder
from mindspeed_vita.engine import metrics
from mindspeed_vita.engine.chosen_step import choose_step
from mindspeed_vita.engine.faults import FailedSamples
from mindspeed_vita.engine.held_out import HeldOut, HeldOutScores
from mindspeed_vita.engine.held_out_packs import HeldOutPacks, held_out_recipe, open_held_out
from mindspeed_vita.engine.session import distributed, shutdown, world_size
from mindspeed_vita.platform import get_platform

if TYPE_CHECKING:
    from mindspeed_vita.data.dataset import PackDataset

_MICRO_BATCHES = 4
"""Micro-batches of each pipeline stage in a round."""


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """What is measured; None and the empty text take what the checkpoint's own recipe says, or the recipe that is named here."""

    recipe: str = ""
    """Recipe whose data and eval sections are taken; also the sizes, for a MindSpeed-LLM folder without them."""
    mixture: str = ""
    media_root: str = ""
    adapter: str = ""
    """Folder of adapters that are merged into the weights."""
    packs: Optional[int] = None
    """0: all of one epoch."""
    seed: Optional[int] = None
    seq_length: Optional[int] = None
    """Tokens of a pack."""
    tokenizer: str = ""
    precision: Optional[Precision] = None
    """None: that of the training, and without one that of the weights."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    plugins: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MeasuredLoss:
    """Scores, and what they are of."""

    scores: HeldOutScores
    folder: Path
    """The step, iteration or export that was measured."""
    recipe: Recipe
    identity: str
    """Of the packs: equal identities mean equal packs."""
    quarantine: Path
    """Where samples that did not decode are listed."""


def measure_loss(folder: Path, options: LossOptions) -> MeasuredLoss:
    """Loads a checkpoint under the layout that is asked for, and measures it. Collective under torchrun.

    Args:
        folder: native run or step folder, or what the conversion reads: Hugging Face, MindSpeed-LLM or Megatron.
        options: what is measured.

    Raises:
        ValueError: no checkpoint there, no mixture, or settings and data that do not fit.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected a checkpoint")
    borrowed = dist.is_initialized()
    measured = _measure(choose_step(folder), options)
    if not borrowed:  # not after an error: other ranks may be gone then, and taking a group down waits for them
        shutdown()
    return measured


def _measure(folder: Path, options: LossOptions) -> MeasuredLoss:
    source = None if _is_native(folder, options) else _open(folder, options)
    kept = source.recipe if source is not None else recipe_of_checkpoint(native.saved_recipe(folder), folder)
    recipe = _recipe(kept, options, source)
    platform = get_platform()
    with distributed(recipe, platform) as layout:
        # Not at the top: init_distributed prepares megatron.core for this device before it is imported.
        from mindspeed_vita.parallel.build import build_model

        dataset = open_held_out(recipe, layout)
        quarantine = index_folder(held_out_recipe(recipe).data) / "quarantine.jsonl"
        failed = _failed_samples(quarantine, str(folder.resolve()), dataset)
        packs = HeldOutPacks(recipe, layout, dataset=dataset, failed=failed)
        model: Any = build_model(recipe, layout, platform.device).requires_grad_(False)
        if source is None:
            native.load_weights(folder, model, config=recipe.model)
        else:
            native.load_full_weights(source.weights, model, source=str(folder))
            source.wait()
        scores = HeldOut(recipe, layout, platform, model=model, packs=packs).measure()
    return MeasuredLoss(scores=scores, folder=folder, recipe=recipe, identity=packs.identity, quarantine=quarantine)


def _failed_samples(quarantine: Path, run: str, dataset: PackDataset) -> FailedSamples:
    """The record of the samples that fail now, in the place of what an earlier measurement of the same weights wrote. Collective."""

    def clear() -> None:
        metrics.truncate(quarantine, -1, run=run)

    on_first_rank(clear)
    return FailedSamples(quarantine, run=run, budget=dataset.failure_budget())


def _is_native(folder: Path, options: LossOptions) -> bool:
    """Whether each rank reads its own part: of whole native weights, into which nothing is merged."""
    if options.adapter or holds_adapters(folder):
        return False
    return not (folder / "config.json").is_file() and not rank_files.is_mindspeed(folder)


def _open(folder: Path, options: LossOptions) -> Source:
    sizes = options.recipe if rank_files.is_mindspeed(folder) and rank_files.saved_recipe(folder) is None else ""
    return open_source(folder, SourceOptions(recipe=sizes, tokenizer=options.tokenizer, plugins=options.plugins, adapter=options.adapter))


def _recipe(kept: Recipe, options: LossOptions, source: Optional[Source]) -> Recipe:
    told = load_recipe(options.recipe) if options.recipe else kept
    chosen: dict[str, Any] = {
        **({"mixture": options.mixture} if options.mixture else {}),
        **({"media_root": options.media_root} if options.media_root else {}),
        **({"packs": options.packs} if options.packs is not None else {}),
        **({"seed": options.seed} if options.seed is not None else {}),
    }
    measured = replace(told.eval, patience=0, keep_best=False, gate=0.0, **chosen)
    if not measured.mixture:
        raise ValueError("no held-out mixture is named; add --mixture FILE, or --recipe with a recipe that has eval.mixture")
    tokenizer = options.tokenizer or told.data.tokenizer or kept.data.tokenizer
    data = replace(told.data, tokenizer=tokenizer, seq_length=options.seq_length or told.data.seq_length)
    sizes = options.parallel
    ranks = max(1, world_size() // (sizes.tp * sizes.pp * sizes.cp))
    batch = ranks * (_MICRO_BATCHES * sizes.pp if sizes.pp > 1 else 1)
    precision = options.precision or (kept.train.precision if source is None else _stored(source))
    train = replace(without_recomputation(kept.train), precision=precision, steps=1, global_batch=batch, objective=SUPERVISED)
    return replace(kept, data=data, eval=measured, parallel=sizes, train=train)


def _stored(source: Source) -> Precision:
    import torch

    return "fp32" if source.weights.specs()["language.embedding.word_embeddings.weight"].dtype is torch.float32 else "bf16"
