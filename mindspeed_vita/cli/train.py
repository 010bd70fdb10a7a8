"""`vita train RECIPE.yaml key=value ... [-- flags of MindSpeed-LLM]`"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import TYPE_CHECKING

from mindspeed_vita.choices import ENGINES
from mindspeed_vita.config import Recipe
from mindspeed_vita.wording import counted

if TYPE_CHECKING:
    from mindspeed_vita.engine.outcome import TrainResult

_EPILOG = """
examples:
  vita train examples/tiny/stage1.yaml
  vita train recipe.yaml train.lr=1e-4 checkpoint.directory=runs/a
  torchrun --nproc_per_node 8 -m mindspeed_vita.cli.main train recipe.yaml parallel.tp=4
  DEVICE=cpu vita train recipe.yaml        (auto, npu, cuda or cpu)
  torchrun --nproc_per_node 8 -m mindspeed_vita.cli.main train --engine mindspeed-llm recipe.yaml parallel.tp=8 -- --use-fused-rmsnorm

The same command continues from the newest checkpoint in checkpoint.directory. SIGTERM, SIGUSR1 and Ctrl-C let the run finish its step
and save; a second one ends it at once. torchrun kills its ranks 30 s after the signal. Releases of torch that read
TORCH_ELASTIC_SHUTDOWN_TIMEOUT (2.13 does; 2.7.1 does not) give them that many seconds. On others, send SIGTERM to the process that run.lock
in the run's folder names.

exit status: 0 trained to the last step, or stopped early by eval.patience; 75 told to stop, and saved: the same command continues; 76 it
hung; 77 another process of the run died; 130 ended by Ctrl-C, 138 by SIGUSR1, 143 by SIGTERM, without a save; 2 an error that its message
says how to mend; 1 trained and saved, but eval.gate holds the weights back, or an error with a traceback. torchrun ends with 1 whenever a
process of its run does not end with 0;
`python -m mindspeed_vita.cli.torchrun`, with the same arguments, ends with the status of the run. docs/guides/operations.md tells more.

docs/recipe_keys.md, made from mindspeed_vita/config/recipe.py, documents every recipe key. `vita schema` prints the same as a JSON schema,
for editors. `--print-recipe` shows the recipe with all defaults filled in.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.epilog = _EPILOG
    parser.add_argument("recipe", help="recipe file (YAML)")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="settings that replace those of the file, e.g. train.steps=100"
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="builtin",
        help="builtin (default); MindSpeed-LLM's pretrain on Ascend, which is passed on what stands after --; hf: transformers' Trainer",
    )
    parser.add_argument(
        "--deepspeed", default="", metavar="zero1|zero2|zero3|FILE", help="with --engine hf: DeepSpeed's ZeRO, or a JSON file of DeepSpeed"
    )
    parser.add_argument(
        "--resume-from", default="", metavar="STEP", help="continue from this step of the folder (step_0000100), or from the address of a"
        " run or step in an object store (s3://bucket/run); newer ones are set aside"
    )  # fmt: skip
    parser.add_argument(
        "--resume-with-changes",
        action="store_true",
        help="continue although the learning rate, its multipliers, batch, weight decay, Adam's constants or precision were changed",
    )
    parser.add_argument("--fsdp", action="store_true", help="with --engine hf: share weights, gradients and optimizer by torch's FSDP2")
    parser.add_argument("--print-megatron-args", action="store_true", help="print what --engine mindspeed-llm passes to Megatron and exit")
    parser.set_defaults(passed_on=[])
    parser.add_argument("--print-recipe", action="store_true", help="print the recipe with all defaults and exit")


def run(arguments: argparse.Namespace) -> int:
    """Train, or print the recipe."""
    import yaml

    from mindspeed_vita.config import load_recipe, recipe_to_dict, validate

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.print_recipe:
        print(yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False), end="")
        return 0
    if (arguments.resume_from or arguments.resume_with_changes) and arguments.engine != "builtin":
        raise ValueError("--resume-from and --resume-with-changes: only the built-in engine takes them")
    if arguments.print_megatron_args or arguments.engine == "mindspeed-llm":
        return _mindspeed_llm(recipe, arguments)
    if arguments.passed_on:
        raise ValueError(f"{' '.join(arguments.passed_on)}: only --engine mindspeed-llm takes flags after --")
    if arguments.deepspeed and arguments.engine != "hf":
        raise ValueError(f"--deepspeed {arguments.deepspeed}: only --engine hf takes it")
    if arguments.fsdp and arguments.engine != "hf":
        raise ValueError("--fsdp: only --engine hf takes it")
    validate(recipe, int(os.environ.get("WORLD_SIZE", "1")))
    if arguments.engine == "hf":
        return _hf(recipe, arguments.deepspeed, fsdp=arguments.fsdp)
    return _builtin(recipe, arguments)


def _hf(recipe: Recipe, deepspeed: str, *, fsdp: bool) -> int:
    from pathlib import Path

    from mindspeed_vita.engine.stopping import SAVED, saying_where, stop_signals
    from mindspeed_vita.integration.hf_trainer.checkpoints import newest
    from mindspeed_vita.integration.hf_trainer.run import train

    with saying_where(lambda: newest(Path(recipe.checkpoint.directory))), stop_signals() as stop:
        result = train(recipe, deepspeed=deepspeed, fsdp=fsdp, stop=stop)
    if int(os.environ.get("RANK", "0")) == 0:
        first, last = (f"{loss:.4f}" if loss is not None else "-" for loss in (result.first_loss, result.last_loss))
        speed, memory = f"{result.tokens_per_second:,.0f} tokens/s", f"peak memory {result.peak_memory / 2**30:.2f} GiB"
        ending = f"export {result.export}" if result.export else "stopped by a signal; the same command continues"
        done = f"{recipe.name}: {counted(result.step, 'step')}, {result.sharing}, loss {first} -> {last}"
        print(f"{done}, {speed}, {memory}, {ending}", flush=True)
    return SAVED if result.stopped_by else 0


def _mindspeed_llm(recipe: Recipe, arguments: argparse.Namespace) -> int:
    import shlex

    from mindspeed_vita.integration.mindspeed_llm.arguments import without_effect
    from mindspeed_vita.integration.mindspeed_llm.handover import command_line

    line = command_line(recipe, arguments.passed_on)
    if arguments.print_megatron_args:
        print(shlex.join(line))
        return 0
    if int(os.environ.get("RANK", "0")) == 0:
        for note in without_effect(recipe):
            print(f"vita: {note}", file=sys.stderr)
    sys.argv = ["pretrain_vita.py", *line]  # MindSpeed-LLM reads it on import
    from mindspeed_vita.integration.mindspeed_llm.pretrain_vita import train

    return train()


def _builtin(recipe: Recipe, arguments: argparse.Namespace) -> int:
    if int(os.environ.get("RANK", "0")) == 0:
        # these imports take seconds, and torchrun's own start before them too
        processes = counted(int(os.environ.get("WORLD_SIZE", "1")), "process", "processes")
        print(f"{recipe.name}: starting {processes}, loading torch and megatron.core", file=sys.stderr)
    from mindspeed_vita.checkpoint.native import checkpoint as native
    from mindspeed_vita.cli.after_training import held_out
    from mindspeed_vita.engine.loop import train
    from mindspeed_vita.engine.resuming import Resume
    from mindspeed_vita.engine.stopping import SAVED, saying_where, stop_signals

    with saying_where(lambda: native.latest(recipe.checkpoint.directory)), stop_signals() as stop:
        result = train(recipe, stop=stop, resume=Resume(step=arguments.resume_from, with_changes=arguments.resume_with_changes))
    leads = int(os.environ.get("RANK", "0")) == 0
    if result.stopped_by:
        if leads:
            name = signal.Signals(result.stopped_by).name
            line = f"vita: stopped by {name} after step {result.step} of {recipe.train.steps}; the same command continues from"
            print(line, result.checkpoint, file=sys.stderr, flush=True)
        return SAVED
    if leads:
        trained = result.tokens_per_second > 0
        print(_summary(recipe, result) if trained else _nothing_trained(recipe, result), flush=True)
        for line in held_out(recipe, result):
            print(line, flush=True)
        if trained:
            _print_results(recipe, result)
    sys.stdout.flush()
    if result.gate is None or not result.gate.held:
        return 0
    if leads:
        print(f"vita: {result.gate.describe()}; checkpoint.init_from refuses {result.checkpoint}", file=sys.stderr, flush=True)
    return 1


def _summary(recipe: Recipe, result: TrainResult) -> str:
    """One line about the steps that this process trained."""
    first, last = (f"{loss:.4f}" if loss is not None else "-" for loss in (result.first_loss, result.last_loss))
    return (
        f"{recipe.name}: {counted(result.step, 'step')}, {result.layout}, loss {first} -> {last}, "
        f"{result.tokens_per_second:,.0f} tokens/s, peak memory {result.peak_memory / 2**30:.2f} GiB, checkpoint {result.checkpoint}"
    )


def _nothing_trained(recipe: Recipe, result: TrainResult) -> str:
    """One line where the run had ended before this command."""
    anew = "another checkpoint.directory starts anew"
    if result.stopped_early:
        return (
            f"{recipe.name}: eval.patience={recipe.eval.patience} had ended the run at step {result.step} of {recipe.train.steps}, so "
            f"nothing was trained; checkpoint {result.checkpoint}. A larger eval.patience, or 0, trains on; {anew}"
        )
    return (
        f"{recipe.name}: step {result.step} of {recipe.train.steps} was done before, so nothing was trained; checkpoint "
        f"{result.checkpoint}. train.steps=N trains to step N, {anew}"
    )


def _print_results(recipe: Recipe, result: TrainResult) -> None:
    from mindspeed_vita.cli.after_training import results

    try:
        print(*results(recipe), sep="\n", flush=True)
    except (OSError, ValueError) as error:  # the training itself is done and saved
        print(f"vita: the checkpoint {result.checkpoint} is whole, but its loss curve was not drawn: {error}", file=sys.stderr)
