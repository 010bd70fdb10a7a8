"""`vita eval choice CHECKPOINT FILE --frames 64,128`: a benchmark's questions, by letter likelihood and by generation."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindspeed_vita.cli.answering import add_checkpoint_arguments, check_checkpoint, choose_model, open_session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mindspeed_vita.evaluation.choice.run import ChoiceFile
    from mindspeed_vita.evaluation.gates import Gate
    from mindspeed_vita.inference.batch_file import BatchFile
    from mindspeed_vita.inference.session import InferenceSession

_EPILOG = """
examples:
  vita eval choice exported MMBench_DEV_EN.tsv
  vita eval choice exported videomme/test-00000-of-00001.parquet --media Video-MME --frames 64,128 --subtitles Video-MME/subtitle
  vita eval choice exported MVBench/json --media MVBench/video --frames 64
  torchrun --nproc_per_node 8 -m mindspeed_vita.cli.main eval choice runs/stage4 lvb_val.json --media videos --frames 4096 --tp 2 --cp 4

The same command goes on where a stop left off. docs/guides/evaluation_choice.md lists the formats and the rules.
"""

_NOTES = {
    "without_answer": "rows have no known answer and are not scored",
    "no_letter_found": "generated answers name no option and count as wrong",
    "no_likelihood": "rows have a letter that the tokenizer has no token for, so they are scored by generation only",
}
"""What is said of rows that are counted under a key of scores.summary."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.epilog = _EPILOG
    add_checkpoint_arguments(parser)
    parser.add_argument("file", metavar="FILE", help="the benchmark's TSV, CSV, JSON, JSONL or parquet, or a folder of such files")
    parser.add_argument("--frames", metavar="N,N,...", help="most frames of a video; several numbers are run one after the other; default:"
                        " --max-frames, or as in training")  # fmt: skip
    parser.add_argument("--media", metavar="DIR", help="folder of the pictures and videos; default: that of FILE")
    parser.add_argument("--subtitles", metavar="DIR", help="ask with the subtitles of this folder (Video-MME, LongVideoBench)")
    parser.add_argument("--schema", metavar="NAME", help="the format of FILE, where its columns do not tell: video-mme | longvideobench |"
                        " mmmu | base64-tsv | mvbench")  # fmt: skip
    parser.add_argument("--output", metavar="DIR", help="folder of records and results; default: FILE's name, its format and _results,"
                        " in this folder")  # fmt: skip
    parser.add_argument("--instruction", default="", metavar="TEXT", help="the last line of a question, in place of the one for its kind")
    parser.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="most tokens of an answer (default 32)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    parser.add_argument("--pass", type=float, dest="least", metavar="SHARE", help="exit status 1 if the accuracy over all rows is below"
                        " SHARE (0 to 1) at any number of frames")  # fmt: skip
    parser.add_argument("--by", choices=("likelihood", "generation"), default="generation", help="what --pass looks at")


def run(arguments: argparse.Namespace) -> int:
    """Answer what has no record, then print the table. Exit status 1: less than --pass asks for."""
    from mindspeed_vita.config import import_plugins
    from mindspeed_vita.engine.session import rank, shutdown
    from mindspeed_vita.evaluation.choice.run import ChoiceFile, ChoiceSettings, records_of

    import_plugins(arguments.plugin, "--plugin")
    path = Path(arguments.file)
    for name in ("max_new_tokens", "limit"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; expected at least 1")
    if arguments.least is not None and not 0 <= arguments.least <= 1:
        raise ValueError(f"--pass is {arguments.least}; expected a share from 0 to 1")
    check_checkpoint(arguments)  # last: it may fetch the checkpoint
    names = ("schema", "instruction", "max_new_tokens", "limit")
    options: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    options |= {name: getattr(arguments, name) and Path(getattr(arguments, name)) for name in ("media", "subtitles")}
    file = ChoiceFile(ChoiceSettings(file=path, output=arguments.output and Path(arguments.output), **options))
    file.output.mkdir(parents=True, exist_ok=True)
    others = {name: getattr(arguments, name) for name in ("tokenizer", "frame_pooling", "rope_scaling")}
    found = choose_model(arguments)
    runs = {frames: records_of(file, found.identity, frames, others) for frames in _frames(arguments, found.recipe.data.max_frames)}
    if any(records.left for records in runs.values()):
        session = open_session(arguments)
        if session.ranks.first:
            _answer(session, file, runs, arguments.prefill_chunk)
        else:
            session.serve()
    status = _report(file.output, str(found.folder.resolve()), file.schema.name, runs, arguments) if rank() == 0 else 0
    shutdown()
    return status


def _frames(arguments: argparse.Namespace, trained: int) -> list[int]:
    """Numbers of frames, ascending.

    Args:
        arguments: of the command.
        trained: most frames of a video in training.

    Raises:
        ValueError: not numbers of at least 1.
    """
    if arguments.frames is None:
        return [arguments.max_frames or trained]
    words = arguments.frames.split(",")
    if not all(word.strip().isdigit() and int(word) > 0 for word in words):
        raise ValueError(f"--frames is {arguments.frames!r}; expected numbers of at least 1 with commas between them, such as 64,128")
    return sorted({int(word) for word in words})


def _answer(session: InferenceSession, file: ChoiceFile, runs: Mapping[int, BatchFile], prefill_chunk: int) -> None:
    """Answers what has no record, for one number of frames after the other. First rank only."""
    from mindspeed_vita.evaluation.choice.run import ChoiceRun
    from mindspeed_vita.inference.batch_progress import BatchProgress
    from mindspeed_vita.inference.request_loop import RequestLoop

    with session.leading():
        choice = ChoiceRun(session, file, RequestLoop(session, prefill_tokens=prefill_chunk))
        for frames, records in runs.items():
            name = f"{records.path.name} ({frames} frames)"
            with BatchProgress(name, len(records.lines), len(records.done)) as progress:
                for problem in choice.answer(records, frames, progress.done):
                    progress.line(problem)


def _report(output: Path, checkpoint: str, schema: str, runs: Mapping[int, BatchFile], arguments: argparse.Namespace) -> int:
    """Prints the table, and writes it with everything that was counted to results.json."""
    import json

    from mindspeed_vita.evaluation.choice.scores import summary, table
    from mindspeed_vita.evaluation.gates import judge
    from mindspeed_vita.files.publish import whole_file
    from mindspeed_vita.wording import aligned

    results = {str(frames): summary(_records(records)) for frames, records in runs.items()}
    for line in aligned(table({f"{frames} fr." if len(runs) > 1 else "": result for frames, result in results.items()}), left=2):
        print(line)
    content = {"checkpoint": checkpoint, "file": str(arguments.file), "schema": schema, "frames": results}
    with whole_file(output / "results.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for records in runs.values():
        print(records, file=sys.stderr)
    for frames, result in results.items():
        for key, what in _NOTES.items():
            if result[key]:
                print(f"{result[key]} {what} ({frames} frames)", file=sys.stderr)
    print(f"{output / 'results.json'}", file=sys.stderr)
    return 0 if arguments.least is None else judge(Path(arguments.checkpoint), _gate(results, schema, arguments))


def _gate(results: Mapping[str, Any], schema: str, arguments: argparse.Namespace) -> Gate:
    """The lowest accuracy of all numbers of frames. Rows that failed count as wrong, and no scored rows as 0."""
    import re

    from mindspeed_vita.evaluation.choice.scores import strict
    from mindspeed_vita.evaluation.gates import Gate

    found = {frames: strict(result, arguments.by) for frames, result in results.items()}
    worst = min(found, key=lambda frames: found[frames][0].accuracy or 0.0)
    score, failed = found[worst]
    name = "choice_" + re.sub(r"[^a-z0-9]+", "_", f"{schema}_{Path(arguments.file).stem}".lower()).strip("_")
    detail = f"accuracy by {arguments.by} over all rows of {arguments.file} with {worst} frames"
    detail += f", {failed} counted as wrong" if failed else "" if score.total else ", none scored"
    return Gate(name=name, measured=score.accuracy or 0.0, bound=arguments.least, better="higher", detail=detail)


def _records(records: BatchFile) -> list[dict[str, Any]]:
    import json

    found = [json.loads(line) for line in records.output.read_text(encoding="ascii").splitlines()]
    return sorted(found, key=lambda record: record["line"])
