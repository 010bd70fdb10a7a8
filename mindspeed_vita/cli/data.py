"""`vita data import SOURCE`, and `vita data index|plan|stats|check|skipped|show RECIPE.yaml key=value ...`"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindspeed_vita.cli import data_import
from mindspeed_vita.files.writing import write_text
from mindspeed_vita.wording import counted

if TYPE_CHECKING:
    from mindspeed_vita.config import Recipe
    from mindspeed_vita.data.dataset import PackDataset
    from mindspeed_vita.data.indexing import OnProgress


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="recipe file (YAML)")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="settings that replace those of the file")


def _index_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """
Training makes the index itself where it is missing. It lies in data.index, by default in the folder vita_index next to the mixture.
Unchanged files are not read again.

example:
  vita data index recipe.yaml data.index_processes=32
"""
    _recipe_arguments(parser)


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "\nTraining makes the plan itself where it is missing. It lies next to the index.\n"
    _recipe_arguments(parser)


def _stats_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """
The column steps/epoch is what one epoch takes with this recipe's train.global_batch: set train.steps by it.

examples:
  vita data stats examples/tiny/stage2.yaml
  vita data stats recipe.yaml train.global_batch=64 --output lengths.svg
"""
    _recipe_arguments(parser)
    parser.add_argument("--output", default="", metavar="FILE", help="SVG to write (default: data_lengths.svg in checkpoint.directory)")


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """
Looks through every row: schema, tags against media, missing files, special tokens in the text, empty answers. Exit status 1 if there
are findings. Keys that nothing uses are notes, no findings.

examples:
  vita data check examples/tiny/stage2.yaml
  vita data check recipe.yaml --headers
"""
    _recipe_arguments(parser)
    parser.add_argument("--headers", action="store_true", help="also open every picture and video and read its header")


def _skipped_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """
One line for each row that training leaves out: file, line, reason. Files are indexed first where they are not yet. Rows that merely do
not fit a pack of this recipe are listed too, if the mixture can be built.

example:
  vita data skipped recipe.yaml > skipped.txt
"""
    _recipe_arguments(parser)


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """
Writes one pack as an HTML page: supervised spans are green, tiles and frames stand in place, documents are marked.

example:
  vita data show recipe.yaml --pack 7 --output pack.html
"""
    _recipe_arguments(parser)
    parser.add_argument("--pack", type=int, default=0, metavar="N", help="pack to show, counted from 0 over all epochs (default 0)")
    parser.add_argument("--output", default="", metavar="FILE", help="page to write (default: packN.html in checkpoint.directory)")


ACTIONS = {
    "import": ("make a data set from CSV, TSV, LLaVA JSON or a folder of pictures", data_import.add_arguments),
    "check": ("look through every row for what would stop or shrink a run", _check_arguments),
    "skipped": ("list every row that is left out, with file, line and reason", _skipped_arguments),
    "stats": ("lengths, tiles, fill and steps of each source, as a table and a picture", _stats_arguments),
    "show": ("write one pack as an HTML page", _show_arguments),
    "index": ("measure every sample from its text and media headers", _index_arguments),
    "plan": ("write the packing plans of the epochs that the recipe's steps need", _plan_arguments),
}


def run(arguments: argparse.Namespace) -> int:
    """Do it."""
    if arguments.action == "import":
        return data_import.run(arguments)
    from mindspeed_vita.config import load_recipe, validate

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    layout = recipe.parallel
    validate(recipe, layout.tp * layout.pp * layout.cp)
    actions = {"index": _index, "plan": _plan, "stats": _stats, "check": _check, "skipped": _skipped, "show": _show}
    return actions[arguments.action](recipe, arguments)


def _index(recipe: Recipe, arguments: argparse.Namespace) -> int:
    from mindspeed_vita.data.prepare import index_folder, index_mixture
    from mindspeed_vita.data.templates import get_template
    from mindspeed_vita.data.tokenizer import load_tokenizer
    from mindspeed_vita.files.writing import written_below

    started = time.perf_counter()
    tokenizer = load_tokenizer(recipe.data.tokenizer, get_template(recipe.data.template))
    with _bar() as progress, written_below(index_folder(recipe.data), "data.index"):
        indexed = index_mixture(recipe.data, tokenizer, again=True, progress=progress)
    for spec, files in indexed:
        for _, head in files:
            print(f"{spec.name}: {head.path}: {counted(head.num_rows, 'row')}, {head.num_skipped:,} skipped")
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
        packs = counted(len(plan.packs), "pack")
        print(f"epoch {number}: {packs}, fill {fill:.2%}, {len(plan.packs) / recipe.train.global_batch:,.1f} steps")
    print(f"plan in {dataset.folder}, {time.perf_counter() - started:.1f} s")
    return 0


def _stats(recipe: Recipe, arguments: argparse.Namespace) -> int:
    from mindspeed_vita.data.statistics import picture, source_statistics, table

    dataset = _open(recipe)
    print(table(source_statistics(dataset, recipe.train.global_batch)))
    target = _target(arguments.output, recipe, "data_lengths.svg")
    write_text(target, picture(dataset))
    if dataset.skipped:
        print(dataset.describe())
    print(f"picture in {target}")
    return 0


def _check(recipe: Recipe, arguments: argparse.Namespace) -> int:
    from mindspeed_vita.cli.findings import print_findings
    from mindspeed_vita.data.checking import check_mixture

    total = 0
    for checked in check_mixture(recipe.data, headers=arguments.headers):
        found = f"{counted(checked.num_rows, 'row')}, {counted(len(checked.problems), 'finding')}"
        print(f"{checked.source}: {checked.path}: {found}", flush=True)
        print_findings(checked.problems)
        for note in checked.notes:
            print(f"  note: {note}")
        total += len(checked.problems)
    print(counted(total, "finding") if total else "nothing found")
    return 1 if total else 0


def _skipped(recipe: Recipe, arguments: argparse.Namespace) -> int:
    from mindspeed_vita.data.prepare import skipped_rows
    from mindspeed_vita.data.templates import get_template
    from mindspeed_vita.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(recipe.data.tokenizer, get_template(recipe.data.template))
    with _bar() as progress:
        found = skipped_rows(recipe.data, tokenizer, progress=progress)
    try:
        found += [item for item in _open(recipe).skipped if not item.at_fault]
    except ValueError as error:
        print(f"vita: {error}", file=sys.stderr)
    for item in found:
        print(f"{item.where}: {item.reason}")
    print(f"{counted(len(found), 'row')} {'is' if len(found) == 1 else 'are'} left out", file=sys.stderr)
    return 0


def _show(recipe: Recipe, arguments: argparse.Namespace) -> int:
    from mindspeed_vita.data.page import pack_page

    if arguments.pack < 0:
        raise ValueError(f"--pack {arguments.pack}: expected a number from 0 up")
    dataset = _open(recipe)
    num_packs = max(recipe.train.steps * recipe.train.global_batch, dataset.num_packs(0))
    if arguments.pack >= num_packs:
        raise ValueError(
            f"--pack {arguments.pack}: this recipe trains on {num_packs:,} packs (train.steps x train.global_batch, at least one epoch), "
            f"which are numbered 0 to {num_packs - 1}"
        )
    page = pack_page(dataset, arguments.pack)
    target = _target(arguments.output, recipe, f"pack{arguments.pack}.html")
    write_text(target, page)
    print(target)
    return 0


def _target(output: str, recipe: Recipe, name: str) -> Path:
    """The file to write: where the user says, or in the folder of the run."""
    target = Path(output) if output else Path(recipe.checkpoint.directory) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _open(recipe: Recipe, num_packs: int = 0) -> PackDataset:
    from mindspeed_vita.data.dataset import build_data

    with _bar() as progress:
        return build_data(
            recipe.data,
            tokens_per_tile=recipe.model.tokens_per_tile,
            tile_size=recipe.model.vision.tile_size,
            vocab_size=recipe.model.language.vocab_size,
            normalization=recipe.model.vision.normalization,
            num_packs=num_packs,
            progress=progress,
        )


@contextmanager
def _bar() -> Iterator[OnProgress]:
    """A progress bar over the bytes of each file on a terminal, a line now and then elsewhere."""
    if not sys.stderr.isatty():
        from mindspeed_vita.data.indexing import ProgressLines

        yield ProgressLines()
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

