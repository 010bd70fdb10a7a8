"""`vita convert --from PATH --to hf|internvl|native --output DIR`"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, Optional

from mindspeed_vita.checkpoint.folder_lock import RUN_LOCK, held

if TYPE_CHECKING:
    from mindspeed_vita.checkpoint.hf.layout import Layout

_EPILOG = """
examples:
  vita convert --from runs/stage4 --to hf --output exported
  vita convert --from runs/stage4 --to internvl --output served       (transformers' own InternVL classes, no remote code)
  vita convert --from Long-VITA-16K_HF --to native --output runs/released
  vita convert --from Qwen2.5-14B-Instruct --vision InternViT-300M-448px --to native --output runs/start
  vita convert --from Qwen3-8B --vision InternViT-300M-448px --to native --output runs/qwen3
  vita convert --from Qwen2.5-7B --vision siglip-so400m-patch14-384 --tile-size 448 --to native --output runs/siglip
  vita convert --from Long-VITA-16K_HF --to hf --output readable      (released weights with code for a current transformers)
  vita convert --from runs/ascend --to hf --output exported           (what --engine mindspeed-llm saved)
  vita convert --from Long-VITA_MindSpeed --recipe examples/long_vita_14b/stage1.yaml --to native --output runs/released

A native folder is a start for checkpoint.init_from. An export is read back and compared tensor by tensor before it appears; the
result stands in its verification.json.
"""
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.epilog = _EPILOG
    parser.add_argument("--from", dest="source", required=True, metavar="PATH", help="native, MindSpeed-LLM or Hugging Face folder")
    parser.add_argument("--recipe", metavar="FILE", help="recipe with the sizes, where --from is a MindSpeed-LLM folder of another program")
    parser.add_argument("--vision", metavar="DIR", help="InternViT, SigLIP or CLIP folder, where --from is a language model such as Qwen3")
    parser.add_argument("--new-projector", action="store_true", help="where --from is an InternVL: take its decoder and its tower, and"
                        " start a projector (InternVL's own has biases, ours has none)")  # fmt: skip
    parser.add_argument("--tile-size", type=int, default=0, metavar="PIXELS", help="with --vision: side of a tile, for which the tower's"
                        " positions are interpolated (448 for SigLIP and CLIP); default: the tower's own")  # fmt: skip
    parser.add_argument("--to", required=True, choices=("hf", "internvl", "native"), help="format to write; internvl:"
                        " for transformers, vLLM and SGLang without our code (docs/guides/serve_elsewhere.md)")  # fmt: skip
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--tokenizer", metavar="DIR", help="tokenizer folder, where the source names or holds none")
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE", help="Python module that registers the decoder of a"
                        " Hugging Face folder; may be repeated")  # fmt: skip
    parser.add_argument("--dtype", choices=("bf16", "fp32"), help="type to store; default: as in the source")
    parser.add_argument("--card", nargs="?", const="other", default="", metavar="LICENCE", help="with an export: write README.md for model"
                        " hubs, with the licence of the weights as they name it (apache-2.0, ...; default: other)")  # fmt: skip
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="largest file of an export (default 5GB)")


def run(arguments: argparse.Namespace) -> int:
    """Convert and report in one line."""
    import torch

    from mindspeed_vita.config import import_plugins

    import_plugins(arguments.plugin, "--plugin")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32, None: None}[arguments.dtype]
    shard_bytes = parse_size(arguments.max_shard_size)
    if arguments.card and arguments.to == "native":
        raise ValueError("--card describes an export; leave it out with --to native")
    source, output = Path(arguments.source), Path(arguments.output)
    if not source.is_dir():
        raise ValueError(f"--from {source}: no such folder")
    if source.resolve() == output.resolve():
        raise ValueError(f"--output {output} is the source; choose another folder")
    _check_output(output, arguments.to)
    # a run's own lock for a native folder: nobody may begin to train where weights are about to come
    lock = output / RUN_LOCK if arguments.to == "native" else output.with_name(f".{output.name}.lock")
    with held(lock, folder=output, work="vita convert", advice="choose another --output, or wait"):
        _check_output(output, arguments.to)  # again: another process may have been faster
        return _convert(source, output, arguments, dtype, shard_bytes)


def _check_output(output: Path, to: str) -> None:
    if to != "native":
        from mindspeed_vita.checkpoint.hf.export import check_output

        check_output(output, _layout(to))
    elif output.exists() and (not output.is_dir() or any(path.name != RUN_LOCK for path in output.iterdir())):
        raise ValueError(f"{output} is not empty; choose another --output")


def _convert(source: Path, output: Path, arguments: argparse.Namespace, dtype: Optional[Any], shard_bytes: int) -> int:
    weights, recipe = _read(source, arguments, dtype)
    if arguments.to != "native":
        from mindspeed_vita.checkpoint.hf.export import export_hf
        from mindspeed_vita.data.templates import get_template
        from mindspeed_vita.data.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(recipe.data.tokenizer, get_template(recipe.data.template))
        layout = _layout(arguments.to)
        options = {"layout": layout, "card": arguments.card}
        done = export_hf(weights, recipe, output, tokenizer=tokenizer, dtype=dtype, max_shard_bytes=shard_bytes, **options)
        size = f"{done.num_tensors} tensors, {done.num_parameters:,} parameters, {done.dtype}"
        print(f"{output}: {size}, read back with max_diff {done.max_diff}")
    else:
        folder = _write_native(output, weights, recipe, dtype)
        print(f"{folder}: {len(weights)} tensors; start from it with checkpoint.init_from={output}")
    return 0


def _layout(to: str) -> Layout:
    from mindspeed_vita.checkpoint.hf.export import LONG_VITA
    from mindspeed_vita.checkpoint.hf.internvl_files import INTERNVL_LAYOUT

    return {"hf": LONG_VITA, "internvl": INTERNVL_LAYOUT}[to]


def parse_size(text: str) -> int:
    """Bytes of "5GB", "200MB" or a plain number.

    Raises:
        ValueError: anything else, or zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB|)", text.strip().upper())
    if match is None or not float(match.group(1)):
        raise ValueError(f"--max-shard-size is {text!r}; expected something like 5GB or 200MB")
    return max(1, int(float(match.group(1)) * _UNITS[match.group(2)]))


def _read(source: Path, arguments: argparse.Namespace, dtype: Optional[Any]) -> tuple[Mapping[str, Any], Any]:
    from mindspeed_vita.checkpoint.mindspeed_files import is_mindspeed

    if arguments.new_projector and not (source / "config.json").is_file():
        raise ValueError(f"{source} is no InternVL; leave --new-projector out")
    if is_mindspeed(source):
        return _read_mindspeed(source, arguments)
    if arguments.recipe:
        raise ValueError(f"{source} says its sizes itself; leave --recipe out")
    return _read_hf(source, arguments, dtype) if (source / "config.json").is_file() else _read_native(source, arguments)


def _read_mindspeed(source: Path, arguments: argparse.Namespace) -> tuple[Mapping[str, Any], Any]:
    from dataclasses import replace

    from mindspeed_vita.checkpoint.mapping.families import family_rules
    from mindspeed_vita.checkpoint.mapping.rules import check_names
    from mindspeed_vita.checkpoint.mindspeed_files import read_full_weights, saved_recipe
    from mindspeed_vita.config import load_recipe, recipe_from_dict

    content = saved_recipe(source)
    if content is None and not arguments.recipe:
        raise ValueError(f"{source} does not say its sizes; add --recipe with a recipe of the same architecture")
    recipe = load_recipe(arguments.recipe) if arguments.recipe else recipe_from_dict(content or {}, where=str(source))
    weights = read_full_weights(source)
    check_names(weights, (rule.native for rule in family_rules("long_vita", recipe.model)), side="MindSpeed-LLM")
    return weights, replace(recipe, data=replace(recipe.data, tokenizer=str(arguments.tokenizer or recipe.data.tokenizer)))


def _read_native(source: Path, arguments: argparse.Namespace) -> tuple[Mapping[str, Any], Any]:
    from dataclasses import replace

    from mindspeed_vita.checkpoint.native import checkpoint as native
    from mindspeed_vita.config import recipe_from_dict

    if arguments.vision:
        raise ValueError(f"{source} is a native checkpoint and holds its tower; leave --vision out")
    weights, content = native.read_full_weights(source)
    recipe = recipe_from_dict(content, where=str(source))
    tokenizer = arguments.tokenizer or recipe.data.tokenizer
    return weights, replace(recipe, data=replace(recipe.data, tokenizer=str(tokenizer)))


def _read_hf(source: Path, arguments: argparse.Namespace, dtype: Optional[Any]) -> tuple[Mapping[str, Any], Any]:
    from dataclasses import replace

    from mindspeed_vita.checkpoint.hf.load import import_hf
    from mindspeed_vita.config import Recipe

    options = {"tile_size": arguments.tile_size, "new_projector": arguments.new_projector}
    found = import_hf(source, vision=arguments.vision, dtype=dtype, **options)
    if found.initialised:
        print(f"new, with initial values: {', '.join(found.initialised)}")
    tokenizer = arguments.tokenizer or str(source.resolve())
    plugins = tuple(arguments.plugin)
    return found.weights, Recipe(name=source.name, plugins=plugins, model=found.model, data=replace(found.data, tokenizer=str(tokenizer)))


def _write_native(output: Path, weights: Mapping[str, Any], recipe: Any, dtype: Optional[Any]) -> Path:
    from dataclasses import replace

    import torch

    from mindspeed_vita.checkpoint.native import checkpoint as native

    tensors = {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in weights.items()}
    stored = tensors["language.embedding.word_embeddings.weight"].dtype
    precision = "fp32" if stored is torch.float32 else "bf16"
    return native.save_full_weights(output, tensors, replace(recipe, train=replace(recipe.train, precision=precision)))
