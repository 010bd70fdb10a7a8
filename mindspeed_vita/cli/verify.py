"""`vita verify A B`: whether two checkpoints, of whatever formats, hold the same model, by their tensors or by what they compute."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindspeed_vita.cli.convert import add_source_arguments
from mindspeed_vita.wording import counted

if TYPE_CHECKING:
    from mindspeed_vita.checkpoint.source import Source
    from mindspeed_vita.checks.logits.compare import LogitsComparison

LEVELS = ("hash", "logits")
_EPILOG = """
examples:
  vita verify runs/stage4 exported
  vita verify runs/stage4 exported --level logits
  vita verify Qwen3-8B runs/qwen3 --vision InternViT-300M-448px       (a new projector counts as a difference)
  vita verify runs/ascend start

hash compares the architecture, the names, the shapes, and a checksum of every whole tensor in the second checkpoint's type. One tensor
at a time is in memory. logits runs both over a text with two pictures, layer by layer, in float32 on the CPU, and compares the hidden
states behind every layer and the logits. An export is computed by its own modelling code, or by transformers' InternVL; every other
checkpoint by our model. One layer at a time is in memory. Exit status 1 where anything differs.
"""

CHECKPOINTS = ("first", "second")
"""Arguments that may be addresses in an object store; main.py fetches what they name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.epilog = _EPILOG
    parser.add_argument("first", metavar="A", help="checkpoint of any format")
    parser.add_argument("second", metavar="B", help="checkpoint of any format")
    parser.add_argument("--level", choices=LEVELS, default="hash", help="what is compared: the tensors (hash, the default), or what both"
                        " compute (logits)")  # fmt: skip
    parser.add_argument("--trust-remote-code", action="store_true", help="with --level logits: run the modelling code that lies in an"
                        " exported folder, also where it is not that of this version")  # fmt: skip
    parser.add_argument("--report", metavar="FILE", default="verification.json", help="where the result is written (default"
                        " verification.json in the current folder)")  # fmt: skip
    add_source_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare, write the report, and say the result."""
    from mindspeed_vita.checkpoint.hf.processor import read_json
    from mindspeed_vita.files.publish import whole_file
    from mindspeed_vita.files.writing import write_json

    report = Path(arguments.report)
    if report.is_file() and "same" not in read_json(report):
        raise ValueError(f"{report} is no report of vita verify (an export has a file of that name): name another with --report")
    if arguments.trust_remote_code and arguments.level != "logits":
        raise ValueError("--trust-remote-code: --level hash runs no code of a folder; leave it out")
    folders = (Path(arguments.first), Path(arguments.second))
    sources = (_open(folders[0], arguments), _open(folders[1], arguments))
    compare = {"hash": _hash, "logits": _logits}[arguments.level]
    same, content, line = compare(folders, sources, arguments)
    first, second = (str(folder.resolve()) for folder in folders)
    with whole_file(report) as temporary:
        write_json(temporary, {"first": first, "second": second, "level": arguments.level, "same": same, **content})
    for problem in content["problems"][:20]:
        print(problem)
    if len(content["problems"]) > 20:
        print(f"and {len(content['problems']) - 20:,} more in {report}")
    if same:
        print(f"{line} ({report})")
    return 0 if same else 1


def _open(folder: Path, arguments: argparse.Namespace) -> Source:
    """Each option goes to the side that needs it."""
    from dataclasses import replace

    from mindspeed_vita.checkpoint.hf.config import family_of
    from mindspeed_vita.checkpoint.hf.internvl_config import is_internvl
    from mindspeed_vita.checkpoint.hf.load import read_config
    from mindspeed_vita.checkpoint.megatron.rank_files import is_mindspeed
    from mindspeed_vita.checkpoint.source import open_source
    from mindspeed_vita.cli.convert import source_options

    options = source_options(arguments)
    own = options if is_mindspeed(folder) else replace(options, recipe="")
    config = read_config(folder) if (folder / "config.json").is_file() else {}
    if not config or is_internvl(config) or family_of(config) is not None:  # it holds its tower
        own = replace(own, vision="", tile_size=0, new_projector=own.new_projector and is_internvl(config))
    return open_source(folder, own)


_Result = tuple[bool, Mapping[str, Any], str]
"""Whether both are the same, what the report holds, and what is printed where they are."""


def _hash(folders: tuple[Path, Path], sources: tuple[Source, Source], arguments: argparse.Namespace) -> _Result:
    from dataclasses import asdict

    from mindspeed_vita.checkpoint.compare import compare
    from mindspeed_vita.cli.bytes_bar import bytes_bar

    with bytes_bar(f"{folders[0]} and {folders[1]}") as start:
        found = compare(*sources, start(_bytes(sources[1])))
    line = f"the same model: {counted(found.num_tensors, 'tensor')}, {counted(found.num_parameters, 'parameter')}"
    return found.same, asdict(found), line


def _logits(folders: tuple[Path, Path], sources: tuple[Source, Source], arguments: argparse.Namespace) -> _Result:
    from dataclasses import asdict

    from mindspeed_vita.checks.logits.compare import compare_logits
    from mindspeed_vita.checks.logits.hf_sides import MODELLING, has_code
    from mindspeed_vita.cli.bytes_bar import bytes_bar

    if arguments.trust_remote_code and not any(map(has_code, folders)):
        raise ValueError(f"--trust-remote-code: neither folder holds a {MODELLING}; leave it out")
    with bytes_bar(f"{folders[0]} and {folders[1]}") as start:
        # twice: each layer alone, and from the start
        found = compare_logits(folders, sources, start(2 * _bytes(sources[1])), remote_code=arguments.trust_remote_code)
    for folder, code in zip(folders, found.computed_by):
        print(f"{folder}: computed by {code}")
    _print_table(found)
    return found.same, asdict(found), f"both compute the same: {counted(len(found.points), 'layer')}, {counted(found.tokens, 'token')}"


def _bytes(source: Source) -> int:
    return sum(spec.nbytes for spec in source.weights.specs().values())


def _print_table(found: LogitsComparison) -> None:
    """A line for each layer."""
    width = max(len(point.name) for point in found.points)
    print(f"{'largest difference behind':{width}}  of the layer alone, its share   from the start, its share")
    for point in found.points:
        alone, whole = point.alone, point.from_start
        mark = "" if point.same else "   differs from the start" if point.same_alone else "   differs"
        print(f"{point.name:{width}}  {alone.largest:18.1e} {alone.share:11.1e}   {whole.largest:14.1e} {whole.share:11.1e}{mark}")
    print(f"tolerance of the share: {found.tolerances[0]:.0e} for a layer alone, {found.tolerances[1]:.0e} from the start")
