"""A model ready to answer, from any folder that holds a whole model: whatever `vita convert --from` reads without starting new weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import torch

from mindspeed_vita.checkpoint.adapter.source import holds_adapters
from mindspeed_vita.checkpoint.hf.config import family_of
from mindspeed_vita.checkpoint.hf.internvl_config import is_internvl
from mindspeed_vita.checkpoint.hf.load import read_config
from mindspeed_vita.checkpoint.hf.processor import read_frame_pooling
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.checkpoint.native.atomic import nothing
from mindspeed_vita.checkpoint.source import SourceOptions, current_folder, open_source
from mindspeed_vita.choices import Precision
from mindspeed_vita.config import ParallelConfig, Recipe, stretched
from mindspeed_vita.config.recompute import without_recomputation
from mindspeed_vita.data.templates import get_template
from mindspeed_vita.data.tokenizer import load_tokenizer
from mindspeed_vita.engine.chosen_step import choose_step
from mindspeed_vita.engine.session import init_distributed, world_size
from mindspeed_vita.files.tensors import Tensors
from mindspeed_vita.hf.frame_pooling import read_pooling
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.platform import Platform, get_platform
from mindspeed_vita.wording import counted

if TYPE_CHECKING:
    from mindspeed_vita.models.vita import VitaModel


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """One rank's part of a model."""

    model: VitaModel
    """Without gradients and without sequence parallelism."""
    layout: ParallelLayout
    """This rank's place."""
    recipe: Recipe
    """Architecture, and how prompts are made."""
    tokenizer: Any
    """With the vision tokens."""
    device: torch.device
    """Where the model is."""
    identity: str
    """FoundModel.identity."""
    frame_pooling: Optional[str] = None
    """How the frames of videos are pooled (hf/frame_pooling.py)."""


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A checkpoint that was found, before anything of it is loaded."""

    recipe: Recipe
    """What it says of itself. Its precision is that of the weights."""
    weights: Optional[Tensors]
    """Full tensors; None for a native checkpoint: each rank reads its own part of those, and its share of the checksums."""
    folder: Path
    """Where it is."""
    identity: str = ""
    """Which weights these are: the folder of the step, iteration or export, and Source.identity(); with merged adapters theirs, too. Empty
    for a recipe without weights."""
    frame_pooling: Optional[str] = None
    """How the folder's own processor pools the frames of videos."""
    wait: Callable[[], None] = nothing
    """Ends when the checksums of merged weights were compared; raises where a file differs."""

    def fill(self, model: VitaModel, recipe: Recipe) -> None:
        """Loads this rank's part. Collective.

        Args:
            model: of any layout.
            recipe: what the model was built from.

        Raises:
            ValueError: the weights are not this model's, or a file is damaged.
        """
        if self.weights is None:
            native.load_weights(self.folder, model, config=recipe.model)
        else:
            native.load_full_weights(self.weights, model, source=str(self.folder))
            self.wait()


def load_model(
    path: str | Path,
    *,
    tokenizer: Optional[str | Path] = None,
    recipe: Optional[str | Path] = None,
    adapter: Optional[str | Path] = None,
    tp: int = 1,
    cp: int = 1,
    max_frames: Optional[int] = None,
    max_pixels: Optional[int] = None,
    precision: Optional[Precision] = None,
    rope_scaling: Optional[str] = None,
    frame_pooling: Optional[str] = None,
) -> LoadedModel:
    """Load a checkpoint on the best device, in one process or under torchrun with tp * cp processes. Collective.

    Args:
        path: native run or step folder, Hugging Face folder (Long-VITA, exported or released, or InternVL), or MindSpeed-LLM's folder; or
            a folder of adapters that names its base.
        tokenizer: folder; None takes the checkpoint's own.
        recipe: recipe file with the sizes, for a MindSpeed-LLM folder that another program wrote.
        adapter: folder of adapters (a run's, or peft's), which are merged into the weights as they are loaded.
        tp, cp: tensor and context parallel sizes; any, whatever the layout of the run that saved.
        max_frames: most frames taken from a video; None takes the checkpoint's setting.
        max_pixels: most pixels of a picture or of a frame; None takes the checkpoint's setting.
        precision: bf16 | fp32; None takes that of the weights.
        rope_scaling: other scaling of positions, see config.stretched; None takes that of the training.
        frame_pooling: how the frames of videos are pooled, see hf/frame_pooling.py; None takes what a Hugging Face folder says.

    Raises:
        ValueError: no checkpoint there, no tokenizer, sizes that do not fit the model or the processes, or a scaling or pooling that
            does not fit the model.
    """
    source = find_model(choose_step(path), recipe, adapter=None if adapter is None else choose_step(adapter))
    wanted = inference_recipe(source.recipe, tp, cp, rope_scaling=rope_scaling, max_frames=max_frames)
    pooling = source.frame_pooling if frame_pooling is None else frame_pooling
    read_pooling(pooling, wanted.model.tokens_per_tile)
    if max_pixels is not None:
        wanted = replace(wanted, data=replace(wanted.data, max_pixels=max_pixels))
    if precision is not None:
        wanted = replace(wanted, train=replace(wanted.train, precision=precision))
    loaded, platform, layout = begin(wanted, tokenizer)
    # Not at the top: init_distributed prepares megatron.core for this device before it is imported.
    from mindspeed_vita.parallel.build import build_model

    model = build_model(wanted, layout, platform.device, sequence_parallel=False)
    model.requires_grad_(False)
    source.fill(model, wanted)
    return LoadedModel(
        model=model.eval(),
        layout=layout,
        recipe=wanted,
        tokenizer=loaded,
        device=platform.device,
        identity=source.identity,
        frame_pooling=pooling,
    )


def inference_recipe(
    recipe: Recipe, tp: int, cp: int, *, rope_scaling: Optional[str] = None, max_frames: Optional[int] = None
) -> Recipe:
    """The recipe under another layout, without what only training needs, and with what the caller asks for (see load_model)."""
    frames = recipe.data.max_frames if max_frames is None else max_frames
    return replace(
        recipe,
        parallel=ParallelConfig(tp=tp, cp=cp),
        train=replace(without_recomputation(recipe.train), global_batch=1),
        data=replace(recipe.data, seq_length=2 * tp * cp, max_frames=frames),
        model=recipe.model if rope_scaling is None else stretched(recipe.model, rope_scaling),
    )


def begin(recipe: Recipe, tokenizer: Optional[str | Path]) -> tuple[Any, Platform, ParallelLayout]:
    """The tokenizer, the best device and this rank's layout. Collective.

    Args:
        recipe: of inference_recipe.
        tokenizer: folder; None takes the recipe's.

    Raises:
        ValueError: another number of processes than the layout needs, or no tokenizer.
    """
    tp, cp, found = recipe.parallel.tp, recipe.parallel.cp, world_size()
    if found != tp * cp:
        raise ValueError(
            f"tp={tp} and cp={cp} need {counted(tp * cp, 'process', 'processes')}, one for each device; found {found}. "
            f"Start {tp * cp} (torchrun --nproc_per_node {tp * cp}), or choose --tp and --cp whose product is {found}"
        )
    loaded = load_tokenizer(tokenizer or recipe.data.tokenizer, get_template(recipe.data.template))
    platform = get_platform()
    return loaded, platform, init_distributed(recipe, platform)


def find_model(path: str | Path, recipe: Optional[str | Path] = None, *, adapter: Optional[Path] = None) -> FoundModel:
    """What a folder holds; reads headers, and no weights but those of a MindSpeed-LLM folder.

    Args:
        path: see load_model.
        recipe: recipe file with the sizes, for a MindSpeed-LLM folder that another program wrote.
        adapter: see load_model.

    Raises:
        ValueError: no checkpoint there, only a part of a model, or one that does not fit together.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"checkpoint {path}: no such folder; expected a native run or step, Hugging Face or MindSpeed-LLM folder")
    if (path / "config.json").is_file():
        _refuse_part(path)
    # a native checkpoint is compared with its checksums by all ranks together, as it is loaded
    folder = current_folder(path)
    merges = adapter is not None or holds_adapters(folder)
    opened = open_source(folder, SourceOptions(recipe=str(recipe or ""), adapter=str(adapter or ""), compare=merges))
    identity = f"{folder.resolve()} {opened.identity()}"
    if opened.format == "native" and not merges:
        return FoundModel(recipe=opened.recipe, weights=None, folder=folder, identity=identity)
    stored = opened.weights.specs()["language.embedding.word_embeddings.weight"].dtype
    train = replace(opened.recipe.train, precision="fp32" if stored is torch.float32 else "bf16")
    pooling = read_frame_pooling(opened.files[0].parent) if opened.format == "hf" else None
    told = replace(opened.recipe, train=train)
    found = {"folder": folder, "identity": identity, "frame_pooling": pooling}
    return FoundModel(recipe=told, weights=opened.weights, wait=opened.wait if merges else nothing, **found)  # type: ignore[arg-type]


def _refuse_part(path: Path) -> None:
    """Raises a ValueError for a decoder without a tower: the projector that joins them must be trained before it can answer."""
    config = read_config(path)
    if family_of(config) is None and not is_internvl(config):
        raise ValueError(
            f"{path} is no Long-VITA folder: expected a config.json with model_type 'long_vita', 'internvl' or 'internvl_chat', found "
            f"{config.get('model_type')!r}; a decoder and a tower become a model by `vita convert --vision` and training"
        )
