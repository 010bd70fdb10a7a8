"""`vita data import SOURCE --output DIR`"""

from __future__ import annotations

import argparse
import shlex
import sys

from mindspeed_vita.wording import counted

_EPILOG = """
what SOURCE may be:
  a .csv or .tsv file     a header line, then one picture per line: columns with its path, the answer and, if there is one, the question
  a .json or .jsonl file  LLaVA's layout ("image" or "video", and "conversations"), this project's own schema, or objects with the
                          fields of such a table
  a folder                with one such file in it; or with a text file of the same name next to each picture (cat.jpg and cat.txt);
                          or with one folder of pictures for each answer (cats/1.jpg, dogs/2.jpg)

Paths in a file start from the file's folder, or from --media-root. Nothing is copied: data.media_root says where the pictures are.

examples:
  vita data import photos/captions.csv --output runs/mine/data
  vita data import photos --output runs/mine/data --question "What is it?" --question "What do you see?"
  vita data import llava.json --media-root /data/llava --output runs/mine/data
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.epilog = _EPILOG
    parser.add_argument("source", metavar="SOURCE", help="file or folder to read")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder that receives data.jsonl and mixture.yaml")
    parser.add_argument("--media-root", metavar="DIR", help="folder that paths start from (default: SOURCE, or the folder of that file)")
    parser.add_argument(
        "--question",
        action="append",
        default=[],
        metavar="TEXT",
        help="question for media that come with a caption alone; repeat it to use several in turn (default: Describe the picture.)",
    )
    for role in ("image", "video", "answer", "question"):
        parser.add_argument(f"--{role}-column", metavar="NAME", help=f"column with the {role} (default: found by its usual names)")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad rows out; without it nothing is written if there are any")


def run(arguments: argparse.Namespace) -> int:
    """Import, and print what comes next."""
    from mindspeed_vita.cli.findings import print_findings
    from mindspeed_vita.data.importing import Columns, import_data

    columns = Columns(
        image=arguments.image_column, video=arguments.video_column, answer=arguments.answer_column, question=arguments.question_column
    )
    done = import_data(
        arguments.source,
        arguments.output,
        media_root=arguments.media_root,
        questions=tuple(arguments.question),
        columns=columns,
        skip_bad=arguments.skip_bad,
    )
    print(f"{arguments.source}: {done.what}; {counted(done.num_rows, 'row')}, {done.num_rows - done.num_good:,} of them bad")
    print_findings(done.problems, sys.stderr)
    if done.mixture is None:
        advice = "correct them, or leave them out with --skip-bad" if done.num_good else "no row is good"
        raise ValueError(
            f"nothing was written because of the bad rows above; {advice} (paths start from {done.media_root}; "
            "--media-root names another folder)"
        )
    settings = shlex.join([f"data.mixture={done.mixture}", f"data.media_root={done.media_root}"])
    print(f"{counted(done.num_good, 'sample')} in {done.rows}\nsettings: {settings}\nnext: vita data check RECIPE.yaml {settings}")
    return 0
