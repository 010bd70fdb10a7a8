"""`vita plan RECIPE.yaml`: memory, work, collectives and time of a step of a recipe on devices that are not here, and other layouts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindspeed_vita.config import Recipe, load_recipe, validate
from mindspeed_vita.files.sizes import parse_size
from mindspeed_vita.planner.calibration import read_calibration
from mindspeed_vita.planner.device import KINDS, Device, load_device
from mindspeed_vita.wording import counted

if TYPE_CHECKING:
    from mindspeed_vita.planner.plan import RankPlan
    from mindspeed_vita.planner.search import Longest
    from mindspeed_vita.planner.timing import Timing

_EPILOG = """
examples:
  vita plan examples/long_vita_14b/stage4.yaml --memory 64GiB --explain peak.svg
  vita plan examples/long_vita_14b/stage4.yaml --device 910B --devices 128 train.global_batch=16
  vita plan examples/long_vita_14b/stage4.yaml --device 910B --calibrate runs/stage4/metrics.jsonl
  vita plan examples/long_vita_14b/stage3.yaml --device 910B --longest
  vita plan examples/long_vita_14b/stage4.yaml --inference --devices 8 --memory 64GiB --prompt-tokens 262144

The real step of one rank of each kind of pipeline stage runs on tensors without memory. No device, data or weights are needed.
The variables that the recipe names (DATA_ROOT, TOKENIZER, ...) must be set; nothing is read there.
A full-size trace takes tens of seconds of one CPU core, and about 1 GiB of memory.
docs/planner.md says how traces and times were checked.

Exit status: 0 the recipe's layout fits, or no --memory and no device was named; 1 it does not fit; 2 an error of the arguments.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "--devices",
        type=int,
        metavar="N",
        help="number of devices; other layouts of them are ranked (default: tp x pp x cp of the recipe, and no others)",
    )
    parser.add_argument("--memory", metavar="SIZE", help="memory of a device, such as 64GiB: what fits (default: the device's)")
    parser.add_argument(
        "--device",
        default=KINDS[0],
        metavar="NAME|FILE",
        help="910B, 910C, A100, H20, H100, H200 or a YAML file of constants: times too; npu or cuda: memory alone (default: npu)",
    )
    parser.add_argument(
        "--calibrate",
        metavar="FILE|KEY=VALUE",
        help="with a device: a measured step of this layout, such as seconds=41.5, attention=30 or metrics.jsonl; scales the times",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--limit", type=int, default=8, metavar="N", help="with --devices: other layouts to trace, nearest first (default 8)"
    )
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="traces that run at a time (default 2)")
    parser.add_argument("--longest", action="store_true", help="the longest packs that the recipe's layout has room for")
    parser.add_argument("--inference", action="store_true", help="plan inference instead: each cut of the devices into tp and cp")
    parser.add_argument(
        "--prompt-tokens", type=int, metavar="N", help="with --inference: length of the prompt (default: data.seq_length of the recipe)"
    )
    parser.add_argument("--explain", metavar="FILE.svg", help="draw the memory of the step, by part")
    parser.add_argument("recipe", help="recipe file (YAML)")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="settings that replace those of the file")


def run(arguments: argparse.Namespace) -> int:
    """Prints the plan; 0 when the recipe's layout fits, 1 when it does not."""
    memory, device, measured = _check(arguments)
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    layout = recipe.parallel
    world = layout.tp * layout.pp * layout.cp if arguments.devices is None else arguments.devices
    kind = arguments.device if device is None else device.kind
    if arguments.inference:
        return _inference(arguments, recipe, world, memory, kind)
    validate(recipe, world)

    from mindspeed_vita.planner.inference import longest_in_words
    from mindspeed_vita.planner.layouts import Layout
    from mindspeed_vita.planner.picture import write_picture
    from mindspeed_vita.planner.plan import packs_of_a_rank, plan_own
    from mindspeed_vita.planner.plan_json import own_json
    from mindspeed_vita.planner.report import own_layout
    from mindspeed_vita.planner.timing import time_layout
    from mindspeed_vita.planner.trace.packs import PackContent

    packs = f"{counted(packs_of_a_rank(recipe, world), 'pack')} of {recipe.data.seq_length:,} tokens"
    title = f"{recipe.name} on {counted(world, 'device')}: {Layout.of(recipe).describe(world)}"
    content = PackContent()
    filled = f"traced packs are {content.vision:.0%} vision tokens, and {content.supervised:.0%} are supervised"
    say = _say if arguments.json else _print
    say(f"{title}\n{packs} in a step of each data-parallel rank; {filled}\n")
    plans = plan_own(recipe, world, device=kind, processes=arguments.processes, say=_say)
    timing = None if device is None else time_layout(recipe, world, [plan.trace for plan in plans], device, measured=measured)
    found = own_json(title, plans, memory, timing)
    say(own_layout(plans, memory, kind, timing))
    if arguments.longest and memory is not None:
        longest = _longest(recipe, world, memory, kind)
        found["longest"] = {"tokens": longest.length, "bytes": longest.memory, "limited_by_positions": longest.limited}
        say(f"longest packs that fit: {longest_in_words(longest)}")
    if arguments.explain:
        write_picture(plans, Path(arguments.explain), title=title, memory=memory)
        say(f"memory of the step: {arguments.explain}")
    if arguments.devices is not None and arguments.limit:
        text, found["layouts"] = _others(arguments, recipe, world, memory, kind, plans, timing)
        say(f"\n{text}")
    if arguments.json:
        print(json.dumps(found, indent=1), flush=True)
    return int(memory is not None and any(plan.memory > memory for plan in plans))


def _check(arguments: argparse.Namespace) -> tuple[int | None, Device | None, dict[str, float] | None]:
    """Refuses arguments before anything is traced; returns the bytes of a device, its constants, and what was measured."""
    for option, value, least in (
        ("--devices", arguments.devices, 1),
        ("--limit", arguments.limit, 0),
        ("--processes", arguments.processes, 1),
        ("--prompt-tokens", arguments.prompt_tokens, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"{option} is {value}; expected at least {least}")
    if arguments.longest and arguments.inference:
        raise ValueError("--longest goes with training; --inference names the longest prompt without it, where a device's memory is known")
    if arguments.prompt_tokens is not None and not arguments.inference:
        raise ValueError("--prompt-tokens goes with --inference; packs of training have data.seq_length tokens")
    if arguments.json and arguments.inference:
        raise ValueError("--json prints a step of training; leave it out with --inference")
    if arguments.explain and arguments.inference:
        raise ValueError("--explain draws a step of training; leave it out with --inference")
    if arguments.explain:
        target = Path(arguments.explain)
        if target.suffix != ".svg":
            raise ValueError(f"--explain {target}: the picture is SVG; name a file that ends in .svg")
        if not target.parent.is_dir():
            raise ValueError(f"--explain {target}: no folder {target.parent}")
    device = None if arguments.device in KINDS else load_device(arguments.device)
    if device is None and arguments.calibrate is not None:
        raise ValueError(f"--calibrate: --device {arguments.device} has no times; name a device, such as 910B, or a file of constants")
    measured = None if arguments.calibrate is None else read_calibration(arguments.calibrate)
    memory = None if device is None else device.memory_bytes
    if arguments.memory is not None:
        memory = parse_size(arguments.memory, "--memory", unit_needed=True)
    if arguments.longest and memory is None:
        raise ValueError(
            f"--longest needs the memory of a device, and --device {arguments.device} has no size; "
            "give --memory, such as 64GiB, or name a device, such as --device 910B"
        )
    return memory, device, measured


def _longest(recipe: Recipe, world: int, memory: int, kind: str) -> Longest:
    from mindspeed_vita.planner.longest import Question, longest_context, longest_positions

    question = Question(recipe=recipe, world=world, device=kind, memory=memory, limit=longest_positions(recipe))
    return longest_context(question)


def _inference(arguments: argparse.Namespace, recipe: Recipe, world: int, memory: int | None, kind: str) -> int:
    from mindspeed_vita.planner.inference import plan_inference, table
    from mindspeed_vita.planner.trace.answering import Prompt

    prompt = Prompt(tokens=recipe.data.seq_length if arguments.prompt_tokens is None else arguments.prompt_tokens)
    shares = f"{prompt.vision:.0%} of the prompt are vision tokens"
    print(f"inference of {recipe.name} on {counted(world, 'device')}, a prompt of {prompt.tokens:,} tokens; {shares}\n", flush=True)
    plans, reasons = plan_inference(
        recipe, world, prompt, device=kind, memory=memory, processes=arguments.processes, say=_say
    )
    print(table(plans, reasons, prompt, memory))
    return int(memory is not None and all(plan.memory > memory for plan in plans))


def _others(
    arguments: argparse.Namespace,
    recipe: Recipe,
    world: int,
    memory: int | None,
    kind: str,
    plans: Sequence[RankPlan],
    timing: Timing | None,
) -> tuple[str, list[dict[str, Any]]]:
    from mindspeed_vita.planner.layouts import Layout, other_layouts
    from mindspeed_vita.planner.plan import in_order, rank_layouts, ranked_layout
    from mindspeed_vita.planner.plan_json import ranked_json
    from mindspeed_vita.planner.report import left_out, ranking

    accepted, refusals = other_layouts(recipe, world)
    chosen = accepted[: arguments.limit]
    ranked = rank_layouts(
        recipe,
        world,
        chosen,
        device=kind,
        memory=memory,
        processes=arguments.processes,
        say=_say,
        constants=None if timing is None else timing.device,
        scale=None if timing is None else timing.scale,
    )
    own = ranked_layout(Layout.of(recipe), [plan.trace for plan in plans], kind)
    own = replace(own, seconds=None if timing is None else timing.seconds)
    ordered = in_order([*ranked, own], memory)
    texts = (ranking(ordered, own, world, memory), left_out(refusals, len(accepted) - len(chosen)))
    return "\n".join(text for text in texts if text), [ranked_json(one, memory) for one in ordered]


def _print(line: str) -> None:
    print(line, flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
