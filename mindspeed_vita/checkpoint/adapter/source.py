"""Opens adapters of any format, and finds the weights they belong to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Optional

from mindspeed_vita.checkpoint.adapter import peft_files
from mindspeed_vita.checkpoint.adapter.layers import check_fit, merged
from mindspeed_vita.checkpoint.adapter.rank_files import read_rank_adapters
from mindspeed_vita.checkpoint.native.atomic import nothing
from mindspeed_vita.checkpoint.native.step_folder import differing_weights
from mindspeed_vita.checkpoint.source import Source, SourceOptions, current_folder, open_source
from mindspeed_vita.config import LoraConfig, ModelConfig, Recipe, recipe_of_checkpoint
from mindspeed_vita.files.tensors import Tensors


@dataclass(frozen=True, kw_only=True)
class AdapterSource:
    """Adapters that were opened. Headers were read, no matrices."""

    folder: Path
    """The step, iteration or peft folder."""
    format: str
    """native, mindspeed-llm or peft."""
    lora: LoraConfig
    """What they are, with the base they were trained over as far as the folder says."""
    recipe: Optional[Recipe]
    """Of the run that trained them; None where only peft knew of them."""
    identity: str
    """Tells these adapters from others."""
    read: Callable[[ModelConfig], Tensors]
    """Architecture -> matrices under native names."""
    wait: Callable[[], None] = field(default=nothing)
    """Ends when the checksums were compared."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """The weights under adapters."""

    folder: Path
    source: Source
    fingerprint: str


def holds_adapters(folder: Path) -> bool:
    """Whether a folder holds adapters only: peft's, a run's or a step's, or MindSpeed-LLM's."""
    return peft_files.is_peft(folder) or _recipe_of(folder) is not None


def open_adapter(folder: Path, *, compare: bool = True) -> AdapterSource:
    """Opens the adapters in a folder.

    Args:
        folder: run or step folder, MindSpeed-LLM's folder, or peft's.
        compare: compare a native step's files with their checksums, in a thread.

    Raises:
        ValueError: there are none, or they are of a kind that only peft computes.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected adapters")
    if peft_files.is_peft(folder):
        return _peft(folder)
    recipe, step = _recipe_of(folder), current_folder(folder)
    if recipe is None:
        raise ValueError(f"{folder} holds no adapters; expected a run with lora.rank, one of its steps, or a folder that peft saved")
    if _is_mindspeed(folder):
        tensors, files, wait, kind = *read_rank_adapters(folder), nothing, "mindspeed-llm"
        told: object = [[str(path.name), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    else:
        from mindspeed_vita.checkpoint.native import atomic
        from mindspeed_vita.checkpoint.native import checkpoint as native

        tensors, _, wait = native.open_full_weights(step, compare=compare)
        kind, told = "native", {name: digest for name, digest in atomic.recorded(step).items() if name.startswith("weights/")}

    def read(model: ModelConfig) -> Tensors:
        check_fit(tensors, model, recipe.lora, str(step))
        return tensors

    settings = {"folder": step, "format": kind, "lora": recipe.lora, "recipe": recipe, "read": read, "wait": wait}
    return AdapterSource(identity=_hash(told), **settings)  # type: ignore[arg-type]


def _peft(folder: Path) -> AdapterSource:
    lora, content = peft_files.read_settings(folder), peft_files.recipe_beside(folder)
    recipe = None if content is None else recipe_of_checkpoint(content, folder)
    if recipe is not None:
        lora = replace(lora, base=recipe.lora.base, base_fingerprint=recipe.lora.base_fingerprint)
        recipe = replace(recipe, lora=lora)
    elif Path(peft_files.base_of(folder)).is_dir() and peft_files.base_of(folder):
        lora = replace(lora, base=peft_files.base_of(folder))
    names = [folder / name for name in (peft_files.CONFIG, peft_files.WEIGHTS)]
    told = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in names]
    read = lambda model: peft_files.read_peft(folder, model, lora)  # noqa: E731 - as the other formats'
    return AdapterSource(folder=folder, format="peft", lora=lora, recipe=recipe, identity=_hash(told), read=read)


def find_base(lora: LoraConfig, where: Path | str, options: Optional[SourceOptions] = None, *, named: str = "") -> Base:
    """Opens the weights under adapters, and makes sure that they are the ones.

    Args:
        lora: what the adapters say.
        where: their folder, for messages.
        options: of the base's source.
        named: folder that the caller names instead of lora.base.

    Raises:
        ValueError: no folder is named, it is missing, or it holds other weights.
    """
    told = named or lora.base
    advice = "name the folder with --base (vita convert), as CHECKPOINT with --adapter, or with lora.base (vita train)"
    if not told:
        raise ValueError(f"{where} holds adapters and does not name the weights they belong to; {advice}")
    folder = Path(told)
    if not folder.is_dir():
        raise ValueError(f"{where} holds adapters of {folder}, which does not exist here; {advice}")
    if holds_adapters(folder):
        raise ValueError(f"{where} holds adapters of {folder}, which holds adapters itself; merge those first (vita convert --merge)")
    folder = current_folder(folder)
    base = open_base(folder, options)
    if lora.base_fingerprint and base.fingerprint != lora.base_fingerprint:
        raise ValueError(
            f"{where} holds adapters of other weights (fingerprint {lora.base_fingerprint[:12]}) than {folder} "
            f"(fingerprint {base.fingerprint[:12]}); {advice}"
        )
    return base


def open_base(folder: Path, options: Optional[SourceOptions] = None) -> Base:
    """Opens whole weights, with their fingerprint. An export that names the weights it was made from has theirs.

    Raises:
        ValueError: as open_source.
    """
    from mindspeed_vita.checkpoint.hf.export import VERIFICATION
    from mindspeed_vita.checkpoint.hf.processor import read_json

    source = open_source(folder, options or SourceOptions())
    kept = read_json(folder / VERIFICATION).get("identity") if (folder / VERIFICATION).is_file() else ""
    return Base(folder=folder, source=source, fingerprint=str(kept or source.identity()))


def with_adapters(base: Base, adapter: AdapterSource) -> Source:
    """The weights with the adapters merged into them. Positions turn as in the adapters' training.

    Raises:
        ValueError: the adapters are not of this architecture.
    """
    source = base.source
    model = adapter.recipe.model if adapter.recipe else source.recipe.model
    differing = differing_weights(source.recipe.model, model)
    if differing:
        raise ValueError(f"{adapter.folder} holds adapters of another architecture than {base.folder} ({differing}); name their base")
    weights = merged(source.weights, adapter.read(model), model, adapter.lora)

    def wait() -> None:
        source.wait()
        adapter.wait()

    files = (*source.files, *sorted(path for path in adapter.folder.rglob("*") if path.is_file()))
    recipe = replace(source.recipe, model=model)
    named = f"{adapter.folder.resolve()} {adapter.identity}"
    return replace(source, recipe=recipe, weights=weights, files=files, wait=wait, adapter=named, base=base.folder)


def over_base(adapter: AdapterSource, options: SourceOptions) -> Source:
    """The base that adapters name, or that options.base does, with the adapters merged into it.

    Raises:
        ValueError: as find_base and with_adapters.
    """
    base = find_base(adapter.lora, adapter.folder, replace(options, adapter="", base="", recipe=""), named=options.base)
    source = with_adapters(base, adapter)
    if adapter.recipe is None:
        return source
    # prompts are made as in the adapters' training; a tokenizer that the caller names wins
    data = replace(adapter.recipe.data, tokenizer=options.tokenizer or adapter.recipe.data.tokenizer)
    recipe = replace(adapter.recipe, data=data, lora=LoraConfig())
    return replace(source, recipe=recipe)


def _recipe_of(folder: Path) -> Optional[Recipe]:
    """The recipe of a folder with adapters; None where it holds none."""
    from mindspeed_vita.checkpoint.megatron import dist_files, rank_files
    from mindspeed_vita.checkpoint.native import checkpoint as native
    from mindspeed_vita.checkpoint.native.step_folder import latest

    if not folder.is_dir() or (folder / "config.json").is_file():
        return None
    content = None
    if _is_mindspeed(folder):
        content = None if dist_files.is_distributed(folder) else rank_files.saved_recipe(folder)
    elif (folder / "recipe.json").is_file() or latest(folder) is not None:
        content = native.saved_recipe(native.find(folder))
    lora = content.get("lora", {}) if content else {}
    if not content or (isinstance(lora, Mapping) and not lora.get("rank")):
        return None
    return recipe_of_checkpoint(content, folder)


def _is_mindspeed(folder: Path) -> bool:
    from mindspeed_vita.checkpoint.megatron.rank_files import is_mindspeed

    return is_mindspeed(folder)


def _hash(told: object) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
