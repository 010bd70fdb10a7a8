"""`vita verify A B`: whether two checkpoints, of whatever formats, hold the same model."""

from __future__ import annotations

import argparse
from pathlib import Path

from mindspeed_vita.cli.convert import add_source_arguments
from mindspeed_vita.wording import counted

_EPILOG = """
examples:
  vita verify runs/stage4 exported
  vita verify Qwen3-8B runs/qwen3 --vision InternViT-300M-448px       (a new projector counts as a difference)
  vita verify runs/ascend start

Compares the architecture, the names, the shapes, and a checksum (XXH3 with 128 bits) of every whole tensor in the second
checkpoint's type. One tensor at a time is in memory. Exit status 1 where anything differs.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.epilog = _EPILOG
    parser.add_argument("first", metavar="A", help="checkpoint of any format")
    parser.add_argument("second", metavar="B", help="checkpoint of any format")
    parser.add_argument("--report", metavar="FILE", default="verification.json", help="where the result is written (default"
                        " verification.json in the current folder)")  # fmt: skip
    add_source_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare, write the report, and say the result."""
    from dataclasses import asdict, replace

    from mindspeed_vita.checkpoint.compare import compare
    from mindspeed_vita.checkpoint.hf.config import family_of
    from mindspeed_vita.checkpoint.hf.internvl_config import is_internvl
    from mindspeed_vita.checkpoint.hf.load import read_config
    from mindspeed_vita.checkpoint.hf.processor import read_json
    from mindspeed_vita.checkpoint.megatron.rank_files import is_mindspeed
    from mindspeed_vita.checkpoint.source import open_source
    from mindspeed_vita.cli.bytes_bar import bytes_bar
    from mindspeed_vita.cli.convert import source_options
    from mindspeed_vita.files.publish import whole_file
    from mindspeed_vita.files.writing import write_json

    options, report = source_options(arguments), Path(arguments.report)
    if report.is_file() and "same" not in read_json(report):
        raise ValueError(f"{report} is no report of vita verify (an export has a file of that name): name another with --report")
    first, second = Path(arguments.first), Path(arguments.second)
    opened = []
    for folder in (first, second):
        # each option goes to the side that needs it
        own = options if is_mindspeed(folder) else replace(options, recipe="")
        config = read_config(folder) if (folder / "config.json").is_file() else {}
        if not config or is_internvl(config) or family_of(config) is not None:  # it holds its tower
            own = replace(own, vision="", tile_size=0, new_projector=own.new_projector and is_internvl(config))
        opened.append(open_source(folder, own))
    with bytes_bar(f"{first} and {second}") as start:
        found = compare(opened[0], opened[1], start(sum(spec.nbytes for spec in opened[1].weights.specs().values())))
    with whole_file(report) as temporary:
        write_json(temporary, {"first": str(first.resolve()), "second": str(second.resolve()), "same": found.same, **asdict(found)})
    for line in found.problems[:20]:
        print(line)
    if len(found.problems) > 20:
        print(f"and {len(found.problems) - 20:,} more in {report}")
    if found.same:
        print(f"the same model: {counted(found.num_tensors, 'tensor')}, {counted(found.num_parameters, 'parameter')} ({report})")
    return 0 if found.same else 1
