"""`vita data index|plan|stats|check|show RECIPE.yaml key=value ...`"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mindspeed_vita.config import Recipe
    from mindspeed_vita.data.dataset import PackDataset
    from mindspeed_vita.data.indexing import Report

_EPILOG = """
actions:
  index   measure every sample of the mixture from its text and media headers; unchanged files are not read again
  plan    write the packing plan of the epochs that the recipe's steps need
  stats   lengths, tiles, fill and predicted steps per source, as a table and as <recipe name>_data.svg (--output)
  check   look through every row: schema, tags against media, missing files; --headers opens each picture and video too
  show    write pack N (--pack, default 0) as an HTML page: learnt spans in colour, tiles and frames in place

Training makes index and plan itself where they are missing. They lie in data.index, by default in vita_index beside the mixture.

examples:
  vita data check examples/tiny/stage2.yaml
  vita data index recipe.yaml data.index_processes=32
  vita data show recipe.yaml --pack 7 --output pack.html
"""
_SHOWN = 20
"""Findings of one file that check prints."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.epilog = _EPILOG
    parser.add_argument("action", choices=("index", "plan", "stats", "check", "show"))
    parser.add_argument("recipe", help="recipe file (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    parser.add_argument("--pack", type=int, default=0, metavar="N", help="pack to show, counted from 0 over all epochs")
    parser.add_argument("--output", default="", metavar="FILE", help="file that stats and show write")
    parser.add_argument("--headers", action="store_true", help="check: read the header of every picture and video")


def run(arguments: argparse.Namespace) -> int:
    """Do it."""
    from mindspeed_vita.config import load_recipe, validate

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    layout = recipe.parallel
    validate(recipe, layout.tp * layout.pp * layout.cp)
    return {"index": _index, "plan": _plan, "stats": _stats, "check": _check, "show": _show}[arguments.action](recipe, arguments)


def _index(recipe: Recipe, arguments: argparse.Namespace) -> int:
    from mindspeed_vita.data.prepare import index_folder, index_mixture
    from mindspeed_vita.data.templates import get_template
    from mindspeed_vita.data.tokenizer import load_tokenizer

    started = time.perf_counter()
    tokenizer = load_tokenizer(recipe.data.tokenizer, get_template(recipe.data.template))
    with _bar() as report:
        indexed = index_mixture(recipe.data, tokenizer, again=True, report=report)
    for spec, files in indexed:
        for _, head in files:
            print(f"{spec.name}: {head.path}: {head.num_rows:,} rows, {head.num_skipped:,} skipped")
    print(f"index in {index_folder(recipe.data)}, {time.perf_counter() - started:.1f} s")
    return 0


def _plan(recipe: Recipe, arguments: argparse.Namespace) -> int:
    started = time.perf_counter()
    dataset = _open(recipe, num_packs=recipe.train.steps * recipe.train.global_batch)
    print(dataset.describe())
    epoch = dataset.locate(recipe.train.steps * recipe.train.global_batch - 1)[0]
    for number in range(epoch + 1):
        plan = dataset.plan(number)
        fill = plan.tokens.sum(dtype=float) / (len(plan.packs) * recipe.data.seq_length)
        print(f"epoch {number}: {len(plan.packs):,} packs, fill {fill:.2%}, {len(plan.packs) / recipe.train.global_batch:,.1f} steps")
    print(f"plan in {dataset.folder}, {time.perf_counter() - started:.1f} s")
    return 0


def _stats(recipe: Recipe, arguments: argparse.Namespace) -> int:
    from mindspeed_vita.data.statistics import picture, source_statistics, table

    dataset = _open(recipe)
    print(table(source_statistics(dataset, recipe.train.global_batch)))
    target = Path(arguments.output or f"{recipe.name}_data.svg")
    target.write_text(picture(dataset), encoding="utf-8")
    if dataset.skipped:
        print(dataset.describe())
    print(f"picture in {target}")
    return 0


def _check(recipe: Recipe, arguments: argparse.Namespace) -> int:
    from mindspeed_vita.data.checking import check_mixture

    total = 0
    for report in check_mixture(recipe.data, headers=arguments.headers):
        print(f"{report.source}: {report.path}: {report.num_rows:,} rows, {len(report.findings):,} findings", flush=True)
        for finding in report.findings[:_SHOWN]:
            print(f"  {finding.where}: {finding.reason}")
        if len(report.findings) > _SHOWN:
            print(f"  and {len(report.findings) - _SHOWN:,} more")
        total += len(report.findings)
    print(f"{total:,} findings" if total else "nothing found")
    return 1 if total else 0


def _show(recipe: Recipe, arguments: argparse.Namespace) -> int:
    from mindspeed_vita.data.page import pack_page

    if arguments.pack < 0:
        raise ValueError(f"--pack {arguments.pack}: expected a number from 0 up")
    target = Path(arguments.output or f"{recipe.name}_pack{arguments.pack}.html")
    target.write_text(pack_page(_open(recipe), arguments.pack), encoding="utf-8")
    print(target)
    return 0


def _open(recipe: Recipe, num_packs: int = 0) -> PackDataset:
    from mindspeed_vita.data.dataset import build_data

    with _bar() as report:
        return build_data(
            recipe.data,
            tokens_per_tile=recipe.model.tokens_per_tile,
            tile_size=recipe.model.vision.tile_size,
            vocab_size=recipe.model.language.vocab_size,
            normalization=recipe.model.vision.normalization,
            num_packs=num_packs,
            report=report,
        )


@contextmanager
def _bar() -> Iterator[Report]:
    """A progress bar over the bytes of each file on a terminal, a line now and then elsewhere."""
    if not sys.stderr.isatty():
        from mindspeed_vita.data.indexing import ReportLines

        yield ReportLines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, Any] = {}

        def report(path: str, done: int, total: int) -> None:
            if path not in tasks:
                tasks[path] = progress.add_task(f"index {Path(path).name}", total=total)
            progress.update(tasks[path], completed=done)

        yield report

