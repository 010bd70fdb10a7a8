"""Opens a checkpoint of any format for reading: native, MindSpeed-LLM or Megatron, Hugging Face. Headers are read, no weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

import mindspeed_vita
from mindspeed_vita.checkpoint.native.atomic import nothing
from mindspeed_vita.checkpoint.native.step_folder import weights_identity
from mindspeed_vita.config import Recipe, load_recipe, recipe_of_checkpoint, recipe_to_dict
from mindspeed_vita.files.tensors import Tensors
from mindspeed_vita.files.unfinished import state_of


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What a folder may not say itself."""

    recipe: str = ""
    """Recipe with the sizes, for a MindSpeed-LLM or Megatron checkpoint of another program."""
    vision: str = ""
    """Folder of a tower, for a language model without one."""
    tile_size: int = 0
    """With a tower of its own: side of a tile in pixels; 0 keeps the tower's."""
    tokenizer: str = ""
    """Tokenizer folder, where the source names or holds none."""
    new_projector: bool = False
    """Start a new projector although an InternVL source has one."""
    plugins: tuple[str, ...] = ()
    """Modules that register further decoders."""
    adapter: str = ""
    """Folder of adapters that are merged into the weights."""
    base: str = ""
    """Folder of the weights, where the opened folder holds adapters only and does not name them, or names one that has moved."""
    compare: bool = True
    """Compare the files of a native source with their checksums, in a thread (Source.wait). False leaves that to the caller."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """An opened checkpoint."""

    format: str
    """native, mindspeed-llm (Megatron-LM's, too) or hf."""
    weights: Tensors
    """Whole tensors by native name."""
    recipe: Recipe
    """What they are of."""
    files: tuple[Path, ...]
    """Where they lie."""
    initialised: tuple[str, ...] = ()
    """Weights that the source lacks and that have initial values."""
    adapter: str = ""
    """Which adapters were merged into the weights; empty: none."""
    base: Optional[Path] = None
    """Folder of the weights that they were merged into."""
    wait: Callable[[], None] = field(default=nothing)
    """Ends when the source's own checksums were compared; raises where a file differs."""

    def identity(self) -> str:
        """Tells these weights from others: a hash of the checksums of a native step's weights, else of names, sizes and times of the files.

        A native step keeps it where it is moved or copied.

        Raises:
            DamagedCheckpoint: the checksums cannot be read.
        """
        if self.format == "native":
            own = weights_identity(self.files[0].parent.parent)
        else:
            told = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in self.files]
            own = hashlib.sha256(json.dumps([self.format, told]).encode()).hexdigest()
        return hashlib.sha256(f"{own} {self.adapter.rpartition(' ')[2]}".encode()).hexdigest() if self.adapter else own

    def origin(self, **settings: Any) -> dict[str, Any]:
        """All that the written bytes depend on, for a conversion to go on where it was stopped.

        Args:
            settings: of the conversion.
        """
        return {
            "version": mindspeed_vita.__version__,
            "files": state_of(self.files),
            "recipe": recipe_to_dict(self.recipe),
            **settings,
        }


def current_folder(folder: Path) -> Path:
    """The folder whose weights a checkpoint means now: the newest step of a run, the latest iteration of MindSpeed-LLM's folder.

    Args:
        folder: any checkpoint. A step, an iteration, an export, peft's folder, and a path that is no folder come back as they are.

    Raises:
        ValueError: a run without a whole step, or a damaged file that names the iteration.
    """
    from mindspeed_vita.checkpoint.megatron.rank_files import is_mindspeed, iteration_of
    from mindspeed_vita.checkpoint.native.step_folder import find

    if not folder.is_dir() or any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        return folder
    return iteration_of(folder) if is_mindspeed(folder) else find(folder)


def open_source(folder: Path, options: SourceOptions) -> Source:
    """Finds out what a folder holds, and opens it. Adapters are merged into the weights that they belong to.

    Raises:
        ValueError: no checkpoint there, one that does not fit together, or options that do not fit it.
    """
    from mindspeed_vita.checkpoint.adapter import source as adapters

    if not folder.is_dir():
        raise ValueError(f"{folder}: {'a file' if folder.exists() else 'no such folder'}; expected the folder of a checkpoint")
    if adapters.holds_adapters(folder):
        if options.adapter:
            raise ValueError(f"{folder} holds adapters itself; name the weights, with --adapter {options.adapter}, or merge one of the two")
        return adapters.over_base(adapters.open_adapter(folder), options)
    if options.base:
        raise ValueError(f"{folder} holds whole weights, no adapters; leave --base out")
    if not options.adapter:
        return _open(folder, options)
    adapter = adapters.open_adapter(Path(options.adapter))
    base = adapters.find_base(adapter.lora, adapter.folder, replace(options, adapter=""), named=str(folder))
    return adapters.with_adapters(base, adapter)


def _open(folder: Path, options: SourceOptions) -> Source:
    from mindspeed_vita.checkpoint.megatron.rank_files import is_mindspeed

    if options.new_projector and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no InternVL; leave --new-projector out")
    if is_mindspeed(folder):
        return _mindspeed(folder, options)
    if options.recipe:
        raise ValueError(f"{folder} says its sizes itself; leave --recipe out")
    return _hf(folder, options) if (folder / "config.json").is_file() else _native(folder, options)


def _native(folder: Path, options: SourceOptions) -> Source:
    from mindspeed_vita.checkpoint.native import checkpoint as native

    if options.vision:
        raise ValueError(f"{folder} is a native checkpoint and holds its tower; leave --vision out")
    weights, content, wait = native.open_full_weights(folder, compare=options.compare)
    recipe = _with_tokenizer(recipe_of_checkpoint(content, folder), options)
    files = _weight_files(native.find(folder) / "weights")
    return Source(format="native", weights=weights, recipe=recipe, files=files, wait=wait)


def _mindspeed(folder: Path, options: SourceOptions) -> Source:
    from mindspeed_vita.checkpoint.hf.weights import native_tensors
    from mindspeed_vita.checkpoint.mapping.rules import check_shapes
    from mindspeed_vita.checkpoint.megatron import dist_files, rank_files

    distributed = dist_files.is_distributed(folder)
    content = None if distributed else rank_files.saved_recipe(folder)
    if content is None and not options.recipe:
        raise ValueError(f"{folder} does not say its sizes; add --recipe with a recipe of the same architecture")
    recipe = load_recipe(options.recipe) if options.recipe else recipe_of_checkpoint(content or {}, folder)
    if distributed:
        weights, files = dist_files.read_full_weights(folder, recipe.model.language.num_layers)
    else:
        weights = rank_files.read_full_weights(folder, tied=recipe.model.language.tie_embeddings)
        files = tuple(rank_files.rank_files(folder).values())
    needed = {name: tuple(tensor.shape) for name, tensor in native_tensors(recipe.model).items()}
    try:
        check_shapes(weights.shapes(), needed, side="MindSpeed-LLM")
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return Source(format="mindspeed-llm", weights=weights, recipe=_with_tokenizer(recipe, options), files=files)


def _hf(folder: Path, options: SourceOptions) -> Source:
    from mindspeed_vita.checkpoint.hf.load import import_hf

    found = import_hf(folder, vision=options.vision or None, tile_size=options.tile_size, new_projector=options.new_projector)
    data = replace(found.data, tokenizer=options.tokenizer or str(folder.resolve()))
    recipe = Recipe(name=folder.name, plugins=options.plugins, model=found.model, data=data)
    files = (*_weight_files(folder), *(_weight_files(Path(options.vision)) if options.vision else ()))
    return Source(format="hf", weights=found.weights, recipe=recipe, files=files, initialised=found.initialised)


def _with_tokenizer(recipe: Recipe, options: SourceOptions) -> Recipe:
    return replace(recipe, data=replace(recipe.data, tokenizer=str(options.tokenizer or recipe.data.tokenizer)))


def _weight_files(folder: Path) -> tuple[Path, ...]:
    return _sorted(folder.glob("*.safetensors"))


def _sorted(paths: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(sorted(paths))
