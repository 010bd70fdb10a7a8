"""`vita check RECIPE.yaml`: would this recipe start? Settings, layout, data files, tokenizer and weights; nothing is trained."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Callable, Optional, Sequence

from mindspeed_vita.addresses import is_address
from mindspeed_vita.choices import ENGINES
from mindspeed_vita.config import Recipe, load_recipe, validate
from mindspeed_vita.config.recompute import describe_recomputation
from mindspeed_vita.wording import counted

_EPILOG = """
examples:
  vita check examples/tiny/stage1.yaml
  vita check --processes 64 examples/long_vita_14b/stage4.yaml train.global_batch=16

Nothing is read but names, headers and the tokenizer: no device is touched and no sample opened (`vita data check` opens them).
The stage scripts of examples/ call this with DRY_RUN=1.

Exit status: 0 the run would start, 2 it would not: a line PROBLEM says why, and what to do.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.epilog = _EPILOG
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes the run will have, over all nodes (default 1)")
    parser.add_argument("--engine", choices=ENGINES, default="builtin", help="engine the run will use (default builtin)")
    parser.add_argument("--deepspeed", default="", metavar="zero1|zero2|zero3|FILE", help="with --engine hf: as `vita train` takes it")
    parser.add_argument("--fsdp", action="store_true", help="with --engine hf: as `vita train` takes it")
    parser.add_argument("recipe", help="recipe file (YAML)")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="settings that replace those of the file; flags may follow --, as with train",
    )
    parser.set_defaults(passed_on=[])


def run(arguments: argparse.Namespace) -> int:
    """Prints a line a topic; 0 when the run would start, 2 when something is missing."""
    if arguments.processes < 1:
        raise ValueError(f"--processes is {arguments.processes}; expected at least 1")
    if arguments.passed_on and arguments.engine != "mindspeed-llm":
        raise ValueError(f"{' '.join(arguments.passed_on)}: only --engine mindspeed-llm takes flags after --")
    if arguments.engine != "hf" and (arguments.deepspeed or arguments.fsdp):
        option = f"--deepspeed {arguments.deepspeed}" if arguments.deepspeed else "--fsdp"
        raise ValueError(f"{option}: only --engine hf takes it")
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    topics = _topics(recipe, arguments.processes, arguments.engine)
    if arguments.engine == "mindspeed-llm":
        topics.append(("flags", lambda: _flags(recipe, arguments.passed_on)))
    if arguments.engine == "hf":
        topics.append(("trainer", lambda: _trainer(recipe, arguments.processes, arguments.deepspeed, arguments.fsdp)))
    problems = 0
    print(f"{recipe.name}: {arguments.recipe}")
    for name, look in topics:
        try:
            print(f"  {name:<10} {look()}")
        except ValueError as error:
            problems += 1
            print(f"  {name:<10} PROBLEM: {' '.join(str(error).split())}")
    found = f"{problems} of {len(topics)} topics {'has' if problems == 1 else 'have'} a problem"
    print(f"FAIL: {found}" if problems else "PASS: the run would start")
    return 2 if problems else 0


def problems_of(recipe: Recipe, processes: int, engine: str, *, weights: bool) -> list[str]:
    """What would keep a recipe from starting, a line each.

    Args:
        recipe: a run.
        processes: it will have.
        engine: it will use.
        weights: whether the weights to start from are there already.
    """
    problems = []
    for name, look in _topics(recipe, processes, engine):
        try:
            if weights or name != "weights":
                look()
        except ValueError as error:
            problems.append(f"{name}: {' '.join(str(error).split())}")
    return problems


def _topics(recipe: Recipe, processes: int, engine: str) -> list[tuple[str, Callable[[], str]]]:
    """By name: what says how it is, or raises a ValueError."""
    return [
        ("packs", lambda: _packs(recipe)),
        ("training", lambda: _training(recipe)),
        ("layout", lambda: _layout(recipe, processes, engine)),
        ("data", lambda: _data(recipe)),
        *([("held out", lambda: _held_out(recipe))] if recipe.eval.mixture else []),
        ("tokenizer", lambda: _tokenizer(recipe)),
        ("weights", lambda: _weights(recipe, engine)),
    ]


def _packs(recipe: Recipe) -> str:
    data = recipe.data
    sources = "of one source" if data.packing == "same_source" else "across sources"
    isolated = "samples isolated" if data.resets else "samples not isolated"
    most = f"{counted(data.max_images, 'picture')}, {counted(data.max_frames, 'frame')} a video"
    return f"{counted(data.seq_length, 'token')} {sources}, {isolated}; at most {most}"


def _training(recipe: Recipe) -> str:
    train = recipe.train
    steps = f"{counted(train.steps, 'step')} of {counted(train.global_batch, 'pack')}, learning rate {train.lr:g} -> {train.min_lr:g}"
    lora = recipe.lora
    trained = f"adapters of rank {lora.rank} of {', '.join(lora.parts)}" if lora.rank else ", ".join(train.modules)
    return f"{trained}; {steps}, {train.precision}, {describe_recomputation(recipe)}"


def _layout(recipe: Recipe, processes: int, engine: str) -> str:
    # MindSpeed-LLM has flags for stages of unlike size, which the topic `flags` looks at
    validate(recipe, processes, uneven_pipeline=engine == "mindspeed-llm")
    if engine == "hf":
        from mindspeed_vita.integration.hf_trainer import refusals

        refusals.check(recipe)
    layout = recipe.parallel
    dp = processes // (layout.tp * layout.pp * layout.cp)
    packs = recipe.train.global_batch // dp
    sizes = f"tp {layout.tp} pp {layout.pp} cp {layout.cp} dp {dp}"
    return f"{counted(processes, 'process', 'processes')}: {sizes}; {counted(packs, 'pack')} a step for each data-parallel rank"


def _data(recipe: Recipe) -> str:
    from mindspeed_vita.data.mixture import load_mixture
    from mindspeed_vita.data.prepare import check_media_root, store_cache

    sources = load_mixture(recipe.data.mixture, store_cache(recipe.data))
    root = recipe.data.media_root
    check_media_root(root, "data.media_root")
    files = sum(len(source.paths) for source in sources)
    found = f"{counted(len(sources), 'source')}, {counted(files, 'file')}"
    return f"{recipe.data.mixture}: {found}, all there; media below {root or 'the folder of each file'}"


def _held_out(recipe: Recipe) -> str:
    from mindspeed_vita.data.mixture import load_mixture
    from mindspeed_vita.data.prepare import check_media_root, store_cache
    from mindspeed_vita.engine.held_out_packs import held_out_recipe

    told = held_out_recipe(recipe)
    sources = load_mixture(told.data.mixture, store_cache(told.data))
    check_media_root(told.data.media_root, "eval.media_root")
    packs = counted(recipe.eval.packs, "pack") if recipe.eval.packs else "every pack"
    return f"{told.data.mixture}: {counted(len(sources), 'source')}, all there; {packs} every {counted(recipe.eval.every, 'step')}"


def _tokenizer(recipe: Recipe) -> str:
    from mindspeed_vita.data.tokenizer import check_tokenizer

    return f"{check_tokenizer(recipe.data.tokenizer, recipe.data.template)}, with the template {recipe.data.template}"


def _weights(recipe: Recipe, engine: str) -> str:
    from mindspeed_vita.checkpoint.gates import check_handover
    from mindspeed_vita.checkpoint.native import step_folder

    directory, start = recipe.checkpoint.directory, recipe.checkpoint.init_from
    if engine == "mindspeed-llm":
        from mindspeed_vita.integration.mindspeed_llm.handover import holds_checkpoint, resumes
        from mindspeed_vita.integration.mindspeed_llm.refusals import check_stores

        check_stores(recipe)
        # what MindSpeed-LLM saved names its own architecture, which its loader checks
        if resumes(recipe):
            return f"continues from {directory}"
        if holds_checkpoint(start):
            check_handover(Path(start))
            return f"start from {start}, which MindSpeed-LLM saved; checkpoints go to {directory}"
    if engine == "hf":
        from mindspeed_vita.integration.hf_trainer import checkpoints
        from mindspeed_vita.integration.hf_trainer.start_weights import describe_start

        return _adapters(recipe, checkpoints.newest(Path(directory))) if recipe.lora.rank else describe_start(recipe)
    newest = step_folder.latest(directory) if engine == "builtin" else None
    if newest is not None and recipe.checkpoint.resume:
        step_folder.check_architecture(newest, recipe.model, resume=True)
        step_folder.check_training(newest, recipe)
        return _adapters(recipe, newest) if recipe.lora.rank else f"continues from {newest}"
    if recipe.lora.rank:
        return _adapters(recipe, None)
    if not start:
        return f"random, as checkpoint.init_from is empty; checkpoints go to {directory}"
    step_folder.check_start(recipe)
    if (Path(start) / "latest_checkpointed_iteration.txt").is_file():
        raise ValueError(f"{start} was saved by MindSpeed-LLM; vita convert --from {start} --to native --output DIR, and start from DIR")
    if is_address(start):
        from mindspeed_vita.checkpoint.fetched import pinned

        return f"start from {pinned(start)}, which is fetched and compared when the run starts; checkpoints go to {directory}"
    found = step_folder.find(start)
    check_handover(found)
    step_folder.check_architecture(found, recipe.model)
    return f"start from {found}; checkpoints go to {directory}"


def _adapters(recipe: Recipe, newest: Optional[Path]) -> str:
    from mindspeed_vita.checkpoint.native import step_folder
    from mindspeed_vita.engine.adapter_base import find_run_base

    base = find_run_base(recipe, newest, None if newest is None else step_folder.saved_recipe(newest))
    assert base is not None
    said = base.describe() if newest is None else f"continues from {newest}; {base.note}"
    return f"{said}; checkpoints go to {recipe.checkpoint.directory}"


def _flags(recipe: Recipe, passed_on: Sequence[str]) -> str:
    from mindspeed_vita.integration.mindspeed_llm.handover import command_line
    from mindspeed_vita.integration.mindspeed_llm.refusals import check_line

    line = command_line(recipe, passed_on)
    unused = "".join(f"; {note}" for note in check_line(line, recipe.model.language))
    return f"{counted(len(line), 'word')} for MindSpeed-LLM; vita train --print-megatron-args shows them{unused}"


def _trainer(recipe: Recipe, processes: int, deepspeed: str, fsdp: bool) -> str:
    from mindspeed_vita.integration.hf_trainer.settings import describe

    return describe(recipe, processes, deepspeed, fsdp=fsdp)
