"""A model ready to answer, from any folder that holds Long-VITA weights: a native run, a Hugging Face folder, MindSpeed-LLM's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import torch

from mindspeed_vita.checkpoint.hf.config import family_of, model_config
from mindspeed_vita.checkpoint.hf.load import read_config
from mindspeed_vita.checkpoint.hf.processor import read_frame_pooling, read_processor
from mindspeed_vita.checkpoint.hf.weights import open_weights
from mindspeed_vita.checkpoint.mapping.families import family_rules
from mindspeed_vita.checkpoint.mapping.rules import NativeView
from mindspeed_vita.checkpoint.megatron.rank_files import is_mindspeed
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.checkpoint.source import SourceOptions, open_source
from mindspeed_vita.choices import Precision
from mindspeed_vita.config import ParallelConfig, Recipe, recipe_from_dict, stretched
from mindspeed_vita.data.templates import get_template
from mindspeed_vita.data.tokenizer import load_tokenizer
from mindspeed_vita.engine.session import init_distributed, world_size
from mindspeed_vita.hf.frame_pooling import read_pooling
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.platform import Platform, get_platform

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
    """Which weights these are: folder and, for a native run, step."""
    frame_pooling: Optional[str] = None
    """How the frames of videos are pooled (hf/frame_pooling.py)."""


@dataclass(frozen=True)
class _Source:
    recipe: Recipe
    weights: Optional[Mapping[str, torch.Tensor]]
    """Full tensors; None for a native folder, whose shards are read directly."""
    folder: Path
    frame_pooling: Optional[str] = None


def load_model(
    path: str | Path,
    *,
    tokenizer: Optional[str | Path] = None,
    recipe: Optional[str | Path] = None,
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
        path: native run or step folder, Hugging Face folder (exported or released), or MindSpeed-LLM's folder.
        tokenizer: folder; None takes the checkpoint's own.
        recipe: recipe file with the sizes, for a MindSpeed-LLM folder that another program wrote.
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
    source = _find(Path(path), recipe)
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
    if source.weights is None:
        native.load_weights(source.folder, model, config=wanted.model)
    else:
        native.load_full_weights(source.weights, model, source=str(source.folder))
    return LoadedModel(
        model=model.eval(),
        layout=layout,
        recipe=wanted,
        tokenizer=loaded,
        device=platform.device,
        identity=str(source.folder.resolve()),
        frame_pooling=pooling,
    )


@dataclass(frozen=True)
class CheckpointSettings:
    """What a checkpoint says about itself, without its weights."""

    recipe: Recipe
    """Architecture, and how prompts are made."""
    frame_pooling: Optional[str]
    """How the frames of videos are pooled (hf/frame_pooling.py)."""
    identity: str
    """As in LoadedModel."""


def read_settings(path: str | Path, recipe: Optional[str | Path] = None) -> CheckpointSettings:
    """What load_model would load; no tensor is read.

    Args:
        path, recipe: as in load_model.

    Raises:
        ValueError: no checkpoint there.
    """
    source = _find(Path(path), recipe)
    return CheckpointSettings(source.recipe, source.frame_pooling, str(source.folder.resolve()))


def inference_recipe(
    recipe: Recipe, tp: int, cp: int, *, rope_scaling: Optional[str] = None, max_frames: Optional[int] = None
) -> Recipe:
    """The recipe under another layout, without what only training needs, and with what the caller asks for (see load_model)."""
    frames = recipe.data.max_frames if max_frames is None else max_frames
    return replace(
        recipe,
        parallel=ParallelConfig(tp=tp, cp=cp),
        train=replace(recipe.train, recompute="none", global_batch=1),
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
        raise ValueError(f"tp={tp} and cp={cp} need {tp * cp} processes, {found} were started; use torchrun --nproc_per_node {tp * cp}")
    loaded = load_tokenizer(tokenizer or recipe.data.tokenizer, get_template(recipe.data.template))
    platform = get_platform()
    return loaded, platform, init_distributed(recipe, platform)


def _find(path: Path, recipe: Optional[str | Path]) -> _Source:
    if not path.is_dir():
        raise ValueError(f"checkpoint {path}: no such folder; expected a native run or step, Hugging Face or MindSpeed-LLM folder")
    if is_mindspeed(path):
        return _mindspeed(path, recipe)
    if recipe is not None:
        raise ValueError(f"{path} says its sizes itself; leave the recipe out")
    if (path / "config.json").is_file():
        return _hugging_face(path)
    folder = native.find(path)
    return _Source(recipe_from_dict(native.saved_recipe(folder), where=str(folder)), None, folder)


def _hugging_face(path: Path) -> _Source:
    config = read_config(path)
    if family_of(config) is None:
        found = config.get("model_type")
        raise ValueError(f"{path} is no Long-VITA folder: expected a config.json with model_type 'long_vita', found {found!r}")
    model = model_config(config)
    weights = NativeView(open_weights(path, "long_vita", model), family_rules("long_vita", model))
    stored = weights["language.embedding.word_embeddings.weight"].dtype
    made = Recipe(name=path.name, model=model, data=replace(read_processor(path), tokenizer=str(path)))
    return _Source(_with_precision(made, stored), weights, path, read_frame_pooling(path))


def _mindspeed(path: Path, recipe: Optional[str | Path]) -> _Source:
    opened = open_source(path, SourceOptions(recipe=str(recipe or "")))
    stored = opened.weights.specs()["language.embedding.word_embeddings.weight"].dtype
    return _Source(_with_precision(opened.recipe, stored), opened.weights, path)


def _with_precision(recipe: Recipe, dtype: torch.dtype) -> Recipe:
    return replace(recipe, train=replace(recipe.train, precision="fp32" if dtype is torch.float32 else "bf16"))
