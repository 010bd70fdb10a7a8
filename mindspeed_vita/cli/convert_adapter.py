"""`vita convert --to peft`, and back: adapters alone, without the weights that they belong to."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mindspeed_vita.wording import counted

if TYPE_CHECKING:
    from mindspeed_vita.checkpoint.adapter.source import AdapterSource
    from mindspeed_vita.config import Recipe
    from mindspeed_vita.files.tensors import Tensors

_OF_WEIGHTS = ("recipe", "vision", "tile_size", "new_projector", "dtype", "rope_scaling", "frame_pooling", "card", "max_shard_size")
_WHOLE = ("optimizer", "replace", "resume")


def check_adapter_arguments(source: Path, arguments: argparse.Namespace) -> bool:
    """Whether adapters alone are converted.

    Raises:
        ValueError: options that do not fit what the source holds.
    """
    from mindspeed_vita.checkpoint.adapter.source import holds_adapters

    adapters, alone = holds_adapters(source), arguments.to in ("peft", "native")
    if not adapters:
        if arguments.merge or arguments.to == "peft":
            option = "--merge" if arguments.merge else "--to peft"
            raise ValueError(f"--from {source} holds no adapters, which {option} is for; expected a run with lora.rank, or peft's folder")
        return False
    if arguments.merge:
        if arguments.to == "peft":
            raise ValueError("--merge gives whole weights, and --to peft writes adapters; leave one of the two out")
        if arguments.optimizer:
            raise ValueError("--optimizer: merged weights have no optimizer, that of the adapters does not fit them; leave it out")
        return False
    if not alone:
        raise ValueError(f"--from {source} holds adapters only; add --merge for a whole {arguments.to} output, or use --to peft or native")
    given = [name for name in (*_OF_WEIGHTS, *_WHOLE) if getattr(arguments, name)]
    if given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"{names}: adapters are converted as they are; leave {names} out, or add --merge for whole weights")
    return True


def convert_adapter(source: Path, output: Path, arguments: argparse.Namespace) -> int:
    """Converts and reports in one line.

    Raises:
        ValueError: the adapters' base is needed and not there, or the adapters are not of its architecture.
    """
    from mindspeed_vita.checkpoint.adapter.source import open_adapter

    adapter = open_adapter(source)
    if arguments.to == adapter.format:
        raise ValueError(f"--from {source} is a {adapter.format} folder of adapters already; choose another --to")
    recipe = _recipe(adapter, arguments)
    tensors = adapter.read(recipe.model)
    write = _write_peft if arguments.to == "peft" else _write_native
    print(f"{write(output, adapter, tensors, recipe, arguments)}: {counted(len(tensors), 'tensor')} of rank {recipe.lora.rank}")
    return 0


def _recipe(adapter: AdapterSource, arguments: argparse.Namespace) -> Recipe:
    """The recipe that goes with the adapters: their own, else the base's."""
    from mindspeed_vita.checkpoint.adapter.source import find_base

    if adapter.recipe is not None and not arguments.base:
        return adapter.recipe
    base = find_base(adapter.lora, adapter.folder, named=arguments.base)
    recipe = adapter.recipe or base.source.recipe
    lora = replace(adapter.lora, base=str(base.folder.resolve()), base_fingerprint=base.fingerprint)
    data = replace(recipe.data, tokenizer=arguments.tokenizer or recipe.data.tokenizer)
    train = replace(recipe.train, modules=tuple(dict.fromkeys((*recipe.train.modules, *lora.parts))))
    return replace(recipe, model=base.source.recipe.model, lora=lora, data=data, train=train)


def _write_peft(output: Path, adapter: AdapterSource, tensors: Tensors, recipe: Recipe, arguments: argparse.Namespace) -> Path:
    from mindspeed_vita.checkpoint.adapter.peft_files import CONFIG, write_peft
    from mindspeed_vita.checkpoint.lineage import LINEAGE, converted, of_checkpoint
    from mindspeed_vita.files.publish import whole_folder
    from mindspeed_vita.files.writing import write_json

    if arguments.base and not (Path(arguments.base) / "config.json").is_file():
        raise ValueError(f"--base {arguments.base} is no Hugging Face folder, but peft loads the base from one; export it (--to hf) first")
    base = str(Path(arguments.base).resolve()) if arguments.base else ""
    if output.is_dir():
        output.rmdir()  # it is empty: the command looked
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(output, known_by=CONFIG) as folder:
        folder.mkdir()
        write_peft(folder, tensors, recipe, base_export=base)
        write_json(folder / LINEAGE, converted("peft", {}, [of_checkpoint(adapter.folder)]).encode())
        adapter.wait()
    return output


def _write_native(output: Path, adapter: AdapterSource, tensors: Tensors, recipe: Recipe, arguments: argparse.Namespace) -> Path:
    from mindspeed_vita.checkpoint.conversion import IN_MEMORY
    from mindspeed_vita.checkpoint.lineage import converted, of_checkpoint
    from mindspeed_vita.checkpoint.native import checkpoint as native

    record = converted("native", {}, [of_checkpoint(adapter.folder)])
    folder = native.save_full_weights(output, tensors, recipe, conversion=replace(IN_MEMORY, lineage=record))
    adapter.wait()
    return folder
