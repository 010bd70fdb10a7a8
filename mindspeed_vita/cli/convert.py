"""`vita convert --from PATH --to hf|internvl|native|mindspeed-llm|megatron|peft --output DIR`"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from mindspeed_vita.checkpoint.folder_lock import RUN_LOCK, held
from mindspeed_vita.choices import PRECISIONS
from mindspeed_vita.cli.convert_adapter import check_adapter_arguments, convert_adapter
from mindspeed_vita.cli.convert_targets import WRITERS, Work, layout_of
from mindspeed_vita.files.sizes import parse_size

if TYPE_CHECKING:
    from mindspeed_vita.checkpoint.source import Source, SourceOptions
    from mindspeed_vita.checkpoint.training import Training

EXPORTS = ("hf", "internvl")
"""Targets with a tokenizer and a processor."""
TARGETS = (*EXPORTS, "native", "mindspeed-llm", "megatron", "peft")
LARGE_PAGES = ("THP_MEM_ALLOC_ENABLE", "1")
"""torch takes large tensors from pages of 2 MB: putting tensors together then costs a fifth of the processor time."""
CONTINUED = ("native", "mindspeed-llm")
"""Targets that can hold an optimizer."""
_EPILOG = """
examples:
  vita convert --from runs/stage4 --to hf --output exported
  vita convert --from runs/stage4 --to internvl --output served       (transformers' own InternVL classes, no remote code)
  vita convert --from Long-VITA-16K_HF --to native --output runs/released
  vita convert --from Qwen2.5-14B-Instruct --vision InternViT-300M-448px --to native --output runs/start
  vita convert --from Qwen3-8B --vision InternViT-300M-448px --to native --output runs/qwen3
  vita convert --from Qwen2.5-7B --vision siglip-so400m-patch14-384 --tile-size 448 --to native --output runs/siglip
  vita convert --from InternVL3-8B --new-projector --to native --output runs/internvl
  vita convert --from Long-VITA-16K_HF --to hf --output readable      (released weights with code for a current transformers)
  vita convert --from runs/ascend --to hf --output exported           (what --engine mindspeed-llm saved)
  vita convert --from runs/ascend --to mindspeed-llm --tp 4 --pp 2 --output start    (the same weights for another layout)
  vita convert --from runs/ascend --to mindspeed-llm --tp 1 --pp 2 --optimizer --output runs/pp2    (a run continues from it)
  vita convert --from Long-VITA_MindSpeed --recipe examples/long_vita_14b/stage1.yaml --to native --output runs/released
  vita convert --from runs/adapters --to peft --output adapter        (LoRA adapters, for peft over an export of their base)
  vita convert --from runs/adapters --merge --to hf --output exported (whole weights with the adapters in them)

One tensor at a time is in memory. The output appears when it is whole. A conversion that was stopped goes on when the same command
runs again. A native or mindspeed-llm folder is a start for checkpoint.init_from. `vita verify A B` compares two checkpoints.
"""

CHECKPOINTS = ("source", "vision", "base")
"""Arguments that may be addresses in an object store; main.py fetches what they name."""


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """What a source folder may not say itself."""
    parser.add_argument("--recipe", metavar="FILE", default="", help="recipe with the sizes, where a folder of MindSpeed-LLM or Megatron"
                        " comes from another program")  # fmt: skip
    parser.add_argument("--vision", metavar="DIR", default="", help="InternViT, SigLIP or CLIP folder, where the source is a language model"
                        " such as Qwen3")  # fmt: skip
    parser.add_argument("--tile-size", type=int, default=0, metavar="PIXELS", help="with --vision: side of a tile, for which the tower's"
                        " positions are interpolated (448 for SigLIP and CLIP); default: the tower's own")  # fmt: skip
    parser.add_argument("--new-projector", action="store_true", help="with an InternVL folder: start a new projector")
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE", help="Python module that registers the decoder of a"
                        " Hugging Face folder; may be repeated")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "--from", dest="source", required=True, metavar="PATH", help="folder of any format"
    )
    parser.add_argument("--to", required=True, choices=TARGETS, help="format to write; internvl: for transformers, vLLM and SGLang"
                        " without our code (docs/guides/serve_elsewhere.md)")  # fmt: skip
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    add_source_arguments(parser)
    parser.add_argument("--tokenizer", metavar="DIR", default="", help="tokenizer folder, where the source names or holds none")
    parser.add_argument(
        "--tp", type=int, default=0, metavar="N", help="tensor parallel size (mindspeed-llm, megatron; default 1)"
    )
    parser.add_argument("--pp", type=int, default=0, metavar="N", help="pipeline parallel size (mindspeed-llm, megatron; default 1)")
    parser.add_argument("--dtype", choices=PRECISIONS, help="type to store; default: as in the source")
    parser.add_argument("--rope-scaling", metavar="TEXT", help="other scaling of positions, as in `vita generate`; default: as in"
                        " the source")  # fmt: skip
    parser.add_argument("--frame-pooling", metavar="TEXT", help="with --to hf: how the export's processor pools the frames of videos, as in"
                        " `vita generate`; default: as in the source")  # fmt: skip
    parser.add_argument("--card", nargs="?", const="other", default="", metavar="LICENCE", help="with an export: write README.md for model"
                        " hubs, with the licence of the weights as they name it (apache-2.0, ...; default: other)")  # fmt: skip
    parser.add_argument("--max-shard-size", metavar="SIZE", help="largest file of an hf, internvl or native output (default 5GB)")
    parser.add_argument("--merge", action="store_true", help="with a folder of LoRA adapters: write whole weights, the adapters merged in")
    parser.add_argument("--base", metavar="DIR", default="", help="with a folder of LoRA adapters: the weights they belong to, where it"
                        " does not name them; with --to peft: their export, which the output names")  # fmt: skip
    parser.add_argument("--optimizer", action="store_true", help="move the optimizer, steps and packs too, so that a run continues from the"
                        " output (between native and mindspeed-llm)")  # fmt: skip
    parser.add_argument("--replace", action="store_true", help="with an export: replace an earlier one in --output although it was made"
                        " from other weights")  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="refuse to begin anew: there must be a stopped conversion to go on with")


def source_options(arguments: argparse.Namespace) -> SourceOptions:
    """What add_source_arguments added."""
    from mindspeed_vita.checkpoint.source import SourceOptions
    from mindspeed_vita.config import import_plugins

    import_plugins(arguments.plugin, "--plugin")
    return SourceOptions(
        recipe=arguments.recipe,
        vision=arguments.vision,
        tile_size=arguments.tile_size,
        tokenizer=getattr(arguments, "tokenizer", ""),
        plugins=tuple(arguments.plugin),
        new_projector=arguments.new_projector,
        base=getattr(arguments, "base", ""),
    )


def run(arguments: argparse.Namespace) -> int:
    """Convert and report in one line."""
    os.environ.setdefault(*LARGE_PAGES)  # before torch is imported
    source, output = Path(arguments.source), Path(arguments.output)
    if arguments.max_shard_size is not None and arguments.to not in (*EXPORTS, "native"):
        files = "one file" if arguments.to == "peft" else "one file for each rank"
        raise ValueError(f"--max-shard-size: a {arguments.to} output has {files}; leave it out")
    shard_bytes = parse_size(arguments.max_shard_size or "5GB")
    if shard_bytes < 1000:
        raise ValueError(f"--max-shard-size is {shard_bytes} bytes; write the unit, as in {shard_bytes}GB")
    _check_layout(arguments)
    if not source.is_dir():
        raise ValueError(f"--from {source}: no such folder")
    if source.resolve() == output.resolve():
        raise ValueError(f"--output {output} is the source; choose another folder")
    _check_output(output, arguments.to)
    adapters_alone = check_adapter_arguments(source, arguments)
    # a run's own lock for a native folder: nobody may begin to train where weights are about to come
    lock = output / RUN_LOCK if arguments.to == "native" else output.with_name(f".{output.name}.lock")
    with held(lock, folder=output, work="vita convert", advice="choose another --output, or wait"):
        _check_output(output, arguments.to)  # again: another process may have been faster
        if adapters_alone:
            return convert_adapter(source, output, arguments)
        return _convert(source, output, arguments, shard_bytes)


def _check_layout(arguments: argparse.Namespace) -> None:
    for name in ("tp", "pp"):
        size = getattr(arguments, name)
        if size and arguments.to in (*EXPORTS, "native", "peft"):
            raise ValueError(f"--{name} {size}: a {arguments.to} output has no layout, it loads under any; leave --{name} out")
        if size < 0:
            raise ValueError(f"--{name} is {size}; expected at least 1")


def _check_output(output: Path, to: str) -> None:
    if to in EXPORTS:
        from mindspeed_vita.checkpoint.hf.export import check_output

        check_output(output, layout_of(to))
        return
    held_names = [path.name for path in output.iterdir()] if output.is_dir() else []
    # what a stopped conversion to native left there is taken up
    if (output.exists() and not output.is_dir()) or any(name != RUN_LOCK and not name.startswith(".writing-step_") for name in held_names):
        raise ValueError(f"{output} is not empty; choose another --output")


def _convert(source: Path, output: Path, arguments: argparse.Namespace, shard_bytes: int) -> int:
    from dataclasses import replace

    import torch

    from mindspeed_vita.checkpoint.conversion import Conversion
    from mindspeed_vita.checkpoint.gates import held_gates
    from mindspeed_vita.checkpoint.lineage import converted, history, of_checkpoint
    from mindspeed_vita.checkpoint.source import open_source
    from mindspeed_vita.cli.bytes_bar import bytes_bar
    from mindspeed_vita.config import stretched
    from mindspeed_vita.files.unfinished import state_of

    if arguments.card and arguments.to not in EXPORTS:
        raise ValueError(f"--card describes an export; leave it out with --to {arguments.to}")
    if arguments.replace and arguments.to not in EXPORTS:
        raise ValueError(f"--replace: a {arguments.to} output replaces nothing, its folder must be empty; leave it out")
    if arguments.to != "hf" and arguments.frame_pooling is not None:
        raise ValueError(f"--frame-pooling is a setting of our own processor, which --to hf writes; leave it out with --to {arguments.to}")

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32, None: None}[arguments.dtype]
    _check_optimizer(arguments)
    opened = open_source(source, source_options(arguments))
    for path, gate in held_gates(source).items():
        print(f"{source} is held back: {gate.describe()} ({path}); the copy carries no gate")
    training, note = _training(source, opened, arguments)
    if arguments.rope_scaling is not None:
        recipe = replace(opened.recipe, model=stretched(opened.recipe.model, arguments.rope_scaling))
        opened = replace(opened, recipe=recipe)
    if opened.initialised:
        print(f"new, with initial values: {', '.join(opened.initialised)}")
    if opened.format == "hf" and arguments.to not in EXPORTS:  # an export looks itself
        _check_vocabulary(opened)
    with bytes_bar(f"{source} to {arguments.to}") as start:
        settings = {"to": arguments.to, "dtype": str(dtype), "tp": arguments.tp, "pp": arguments.pp, "tile_size": arguments.tile_size,
                    "new": arguments.new_projector}
        if training is not None:
            settings["optimizer"] = state_of(training.files)

        def wait() -> None:
            opened.wait()
            if training is not None:
                training.wait()

        changed = {"dtype": arguments.dtype, "rope-scaling": arguments.rope_scaling, "optimizer": arguments.optimizer}
        parents = [of_checkpoint(folder) for folder in (source, *([Path(arguments.vision)] if arguments.vision else []))]
        base = None if opened.base is None else of_checkpoint(opened.base)
        if base is not None and base not in history(parents[0]):  # adapters that peft trained do not say it
            parents.append(base)
        conversion = Conversion(
            origin=opened.origin(**settings),
            must_go_on=arguments.resume,
            start=start,
            before_publishing=wait,
            identity=opened.identity(),
            lineage=converted(arguments.to, {name: value for name, value in changed.items() if value}, parents),
            replaces=arguments.replace,
        )
        work = Work(
            opened=opened,
            output=output,
            arguments=arguments,
            dtype=dtype,
            shard_bytes=shard_bytes,
            conversion=conversion,
            training=training,
        )
        written = WRITERS[arguments.to](work)
    print(written)
    if note:
        print(note)
    return 0


def _check_optimizer(arguments: argparse.Namespace) -> None:
    """Refuses what an optimizer cannot go with."""
    if not arguments.optimizer:
        return
    if arguments.to not in CONTINUED:
        raise ValueError(f"--optimizer: --to {arguments.to} writes weights only; leave it out, or use --to native or mindspeed-llm")
    for option in ("dtype", "rope_scaling", "recipe"):
        if getattr(arguments, option):
            name = option.replace("_", "-")
            raise ValueError(f"--optimizer moves a run as it is, and --{name} would change it; leave one of the two out")


def _training(source: Path, opened: Source, arguments: argparse.Namespace) -> tuple[Optional[Training], str]:
    """The optimizer that is moved, and what is said afterwards about what is not."""
    from mindspeed_vita.checkpoint.training import NOT_MOVED, for_native, holds_training, open_training

    if not arguments.optimizer:
        left = arguments.to in CONTINUED and not arguments.merge and holds_training(source, opened)
        return None, f"not moved: {source}'s optimizer and steps; --optimizer moves them, for a run to continue" if left else ""
    training = open_training(source, opened)
    if arguments.to == "native":
        return for_native(source, training, opened.recipe), f"not moved: {NOT_MOVED}"
    return training, f"not moved: {NOT_MOVED}; MindSpeed-LLM asks for --no-load-rng once, when the run continues"


def _check_vocabulary(opened: Source) -> None:
    """Refuses a table that is too small for its tokenizer with the vision tokens: a run would refuse it, but only when it starts."""
    from mindspeed_vita.data.templates import get_template
    from mindspeed_vita.data.tokenizer import load_tokenizer

    data, rows = opened.recipe.data, opened.recipe.model.language.vocab_size
    if not any((Path(data.tokenizer) / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return
    entries = len(load_tokenizer(data.tokenizer, get_template(data.template)))
    if entries > rows:
        raise ValueError(
            f"the tokenizer in {data.tokenizer} has {entries} entries with the vision tokens, the embedding table {rows} rows; name "
            f"another one with --tokenizer, or give the model {entries} rows (transformers' resize_token_embeddings) and save it again"
        )
