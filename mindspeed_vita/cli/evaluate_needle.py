"""`vita eval needle CHECKPOINT --lengths 64,256,1024 --output DIR`, and `vita eval needle --make-data DIR` for rows that teach it."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindspeed_vita.cli.answering import add_checkpoint_arguments, check_checkpoint, choose_model, open_session

if TYPE_CHECKING:
    from mindspeed_vita.evaluation.needle_grid import Grid
    from mindspeed_vita.evaluation.needle_record import NeedleRecord
    from mindspeed_vita.inference.loading import FoundModel
    from mindspeed_vita.inference.prompt import PromptEncoder

_EPILOG = """
examples:
  vita eval needle runs/stage4 --lengths 64,256,1024,4096 --depths 11 --count
  vita eval needle runs/stage4 --lengths 64,256,1024 --control --output runs/needle
  vita eval needle runs/stage4 --lengths 64,256,1024 --output runs/needle --pass 0.95 --up-to 256
  torchrun --nproc_per_node 8 -m mindspeed_vita.cli.main eval needle runs/stage4 --cp 8 --lengths 1024,4096 --output runs/needle
  vita eval needle --make-data runs/needle_rows --lengths 4,8,16,32,64 --rows 20000

Tasks: colour and shape of one needle; nth (the colour of the first, second or third of three needles); order (the colours of all three).
The same command goes on where a stop left off. Exit status 1: --pass was not reached, or blanked needles were answered.
"""
_ROWS_ONLY = ("rows", "side", "pool")
_TEST_ONLY = ("checkpoint", "depths", "samples", "control", "output", "count", "least", "up_to")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.epilog = _EPILOG
    add_checkpoint_arguments(parser, optional=True)
    parser.add_argument("--lengths", metavar="N,N", required=True, help="frames of a haystack")
    parser.add_argument("--depths", metavar="N or X,X", default="5", help="how many depths from 0 to 1 (default 5), or the depths")
    parser.add_argument("--tasks", metavar="T,T", default="colour,shape", help="of colour, shape, nth, order (default colour,shape)")
    parser.add_argument("--samples", type=int, default=5, metavar="N", help="haystacks, so questions of a task in each cell (default 5)")
    parser.add_argument("--media", default="video", metavar="KIND", help="video (default): frames of one video | pictures")
    parser.add_argument("--distractor-every", type=int, default=8, metavar="N", help="one card that no question asks about in each N"
                        " frames (default 8; 0: none)")  # fmt: skip
    parser.add_argument("--wall", default="", metavar="COLOUR", help="black | white: the wall of all needles; default: either, so that only"
                        " the question says which cards are needles")  # fmt: skip
    parser.add_argument("--control", action="store_true", help="ask all of it again with blanked needles, which must be at chance")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the haystacks (default 0)")
    parser.add_argument("--output", metavar="DIR", help="folder for the answers, the scores and the heat map")
    parser.add_argument("--count", action="store_true", help="only print requests, frames, tokens and what the prefix cache saves;"
                        " CHECKPOINT may be a recipe")  # fmt: skip
    parser.add_argument("--pass", dest="least", type=float, metavar="SHARE", help="least share of right answers, 0 to 1, of each task"
                        " at each length; else the exit status is 1")  # fmt: skip
    parser.add_argument("--up-to", type=int, metavar="N", help="with --pass: only lengths up to N frames count")
    parser.add_argument("--make-data", metavar="DIR", help="write rows that teach this, with their frames, in place of asking")
    parser.add_argument("--rows", type=int, metavar="N", help="with --make-data: how many (default 10000)")
    parser.add_argument("--side", type=int, metavar="N", help="with --make-data: pixels of a frame (default 448)")
    parser.add_argument("--pool", type=int, metavar="N", help="with --make-data: different frames of each kind (default 2048); with few, a"
                        " model learns them by heart")  # fmt: skip
    known = {action.dest: action.default for action in parser._actions}
    parser.set_defaults(defaults={name: known[name] for name in (*_ROWS_ONLY, *_TEST_ONLY)})


def run(arguments: argparse.Namespace) -> int:
    """Ask, count, or write rows."""
    grid = _grid(arguments)
    if arguments.make_data is not None:
        _refuse(arguments, _TEST_ONLY, "--make-data writes rows and asks nothing")
        return _make_data(arguments, grid)
    _refuse(arguments, _ROWS_ONLY, "only --make-data writes rows")
    if arguments.checkpoint is None:
        raise ValueError("give a CHECKPOINT to ask, or --make-data DIR for rows that teach")
    if arguments.max_frames is not None:
        raise ValueError("--max-frames follows from --lengths here; leave it out")
    arguments.max_frames = max(grid.lengths)
    if (arguments.output is None) != arguments.count:
        raise ValueError("give either --output DIR, to ask, or --count, to see what that will cost")
    if arguments.count:
        _refuse(arguments, ("least", "up_to"), "--count asks nothing")
    if arguments.least is not None and not 0 <= arguments.least <= 1:
        raise ValueError(f"--pass is {arguments.least:g}; expected a share of right answers, 0 to 1")
    if arguments.up_to is not None and (arguments.least is None or arguments.up_to < min(grid.lengths)):
        raise ValueError(f"--up-to {arguments.up_to} goes with --pass, and must reach the shortest length, {min(grid.lengths)}")
    found = _found(arguments)
    prompts = _prompts(arguments, found)
    return _count(grid, prompts) if arguments.count else _ask(arguments, grid, prompts, found.identity)


def _refuse(arguments: argparse.Namespace, names: tuple[str, ...], why: str) -> None:
    """Refuses options that would do nothing."""
    used = [name for name in names if getattr(arguments, name) != arguments.defaults[name]]
    if used:
        shown = {"least": "--pass", "checkpoint": "CHECKPOINT"}
        raise ValueError(f"{why}; leave out {', '.join(shown.get(name, '--' + name.replace('_', '-')) for name in used)}")


def _grid(arguments: argparse.Namespace) -> Grid:
    from mindspeed_vita.evaluation.needle_grid import Grid, evenly

    depths = _numbers(arguments.depths, "--depths", float)
    return Grid(
        lengths=tuple(_numbers(arguments.lengths, "--lengths", int)),
        depths=evenly(int(depths[0])) if len(depths) == 1 and depths[0] > 1 and depths[0].is_integer() else tuple(depths),
        tasks=tuple(arguments.tasks.split(",")),
        samples=arguments.samples,
        media=arguments.media,
        distractor_every=arguments.distractor_every,
        wall=arguments.wall,
        control=arguments.control,
        seed=arguments.seed,
    )


def _numbers(text: str, option: str, kind: type) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} {text}: expected numbers with commas between them, such as 64,256") from error


def _make_data(arguments: argparse.Namespace, grid: Grid) -> int:
    from mindspeed_vita.evaluation.needle_rows import RowSettings, write_rows
    from mindspeed_vita.inference.batch_progress import BatchProgress

    given = {name: getattr(arguments, name) for name in _ROWS_ONLY if getattr(arguments, name) is not None}
    settings = RowSettings(**given)
    with BatchProgress("rows", settings.rows, 0) as progress:
        frames = write_rows(Path(arguments.make_data), grid, settings, progress.done)
    print(f"{arguments.make_data}: {settings.rows:,} rows and {frames:,} frames; mixture.yaml names them for data.mixture")
    return 0


def _found(arguments: argparse.Namespace) -> FoundModel:
    """What the checkpoint, or for --count a recipe, says."""
    from mindspeed_vita.config import import_plugins, load_recipe
    from mindspeed_vita.inference.loading import FoundModel

    import_plugins(arguments.plugin, "--plugin")
    if arguments.count and Path(arguments.checkpoint).is_file():
        return FoundModel(recipe=load_recipe(arguments.checkpoint), weights=None, folder=Path(arguments.checkpoint))
    check_checkpoint(arguments)
    return choose_model(arguments)


def _prompts(arguments: argparse.Namespace, found: FoundModel) -> PromptEncoder:
    """How the checkpoint makes prompts, without its weights."""
    from mindspeed_vita.data.templates import get_template
    from mindspeed_vita.data.tokenizer import load_tokenizer
    from mindspeed_vita.inference.loading import inference_recipe
    from mindspeed_vita.inference.prompt import PromptEncoder

    recipe = inference_recipe(found.recipe, 1, 1, rope_scaling=arguments.rope_scaling, max_frames=arguments.max_frames)
    tokenizer = load_tokenizer(arguments.tokenizer or recipe.data.tokenizer, get_template(recipe.data.template))
    pooling = found.frame_pooling if arguments.frame_pooling is None else arguments.frame_pooling
    return PromptEncoder(recipe, tokenizer, pooling)


def _count(grid: Grid, prompts: PromptEncoder) -> int:
    from mindspeed_vita.evaluation.needle_count import Cost, count
    from mindspeed_vita.wording import aligned

    costs = count(grid.cases(), prompts, grid.media)
    total = sum(costs.values(), Cost())
    lines: list[tuple[str, ...]] = [("frames", "requests", "frames shown", "longest prompt", "tokens", "computed", "reused")]
    for name, cost in (*((f"{length:,}", cost) for length, cost in costs.items()), ("all", total)):
        counts = (cost.requests, cost.frames, cost.longest, cost.tokens, cost.computed)
        lines.append((name, *(f"{number:,}" for number in counts), f"{cost.reused:.1%}"))
    print(*aligned(lines), sep="\n")
    return 0


def _ask(arguments: argparse.Namespace, grid: Grid, prompts: PromptEncoder, identity: str) -> int:
    import json

    from mindspeed_vita.engine.session import rank, shutdown
    from mindspeed_vita.evaluation.needle_count import check_lengths
    from mindspeed_vita.evaluation.needle_record import NeedleRecord

    check_lengths(grid, prompts)
    output = Path(arguments.output)
    chosen = {name: getattr(arguments, name) for name in ("tokenizer", "frame_pooling", "rope_scaling")}
    settings = {"checkpoint": identity, **grid.settings(), **chosen}
    record = NeedleRecord(output, json.loads(json.dumps(settings, default=str)))
    cases = grid.cases()
    if len(record.rows) < len(cases):
        if rank() == 0:
            print(f"loading {arguments.checkpoint}", file=sys.stderr, flush=True)
        _answer(arguments, grid, record)
    speaks = rank() == 0
    shutdown()
    return _report(arguments, grid, record) if speaks else 0


def _answer(arguments: argparse.Namespace, grid: Grid, record: NeedleRecord) -> None:
    from mindspeed_vita.evaluation.needle_media import NeedleMedia
    from mindspeed_vita.evaluation.needle_run import answer_cases
    from mindspeed_vita.inference.batch_progress import BatchProgress
    from mindspeed_vita.inference.request_loop import RequestLoop

    session = open_session(arguments)
    if not session.ranks.first:
        session.serve()
        return
    cases, side = grid.cases(), session.loaded.recipe.model.vision.tile_size
    with session.leading():
        record.path.parent.mkdir(parents=True, exist_ok=True)
        loop = RequestLoop(session, prefill_tokens=arguments.prefill_chunk)
        # next to the answers, where all processes see it
        with tempfile.TemporaryDirectory(prefix="media_", dir=record.path.parent) as folder:
            with BatchProgress("needles", len(cases), len(record.rows)) as progress:
                answer_cases(loop, cases, grid.media, NeedleMedia(Path(folder), side), record, progress.done)


def _report(arguments: argparse.Namespace, grid: Grid, record: NeedleRecord) -> int:
    """Prints the table and writes the files; 1 where the test does not pass."""
    from mindspeed_vita.evaluation.gates import Gate, judge
    from mindspeed_vita.evaluation.needle_report import write_report
    from mindspeed_vita.evaluation.needle_scores import Scores

    scores = Scores(record.rows.values(), lengths=grid.lengths, depths=grid.depths, tasks=grid.tasks, control=grid.control)
    files = write_report(record.path.parent, record.settings, scores, arguments.up_to)
    print(scores.table())
    print(f"answers in {record.path}, scores in {files[0]}, heat map in {files[1]} and {files[2]}")
    if arguments.least is None:
        return 0
    up_to = arguments.up_to or max(grid.lengths)
    for line in scores.shortfalls(arguments.least, up_to):
        print(f"not passed: {line}")
    leaks = scores.leaks()
    asked = f"the lowest share of a task at a length up to {up_to:,} frames"
    detail = f"{asked}, taken as 0 because {'; '.join(leaks)}" if leaks else asked
    gate = Gate(name="needle", measured=0.0 if leaks else scores.lowest(up_to), bound=arguments.least, better="higher", detail=detail)
    return judge(Path(arguments.checkpoint), gate)
