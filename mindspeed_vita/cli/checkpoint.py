"""`vita checkpoint list | verify | prune | reshard`: the steps of a run, without training."""

from __future__ import annotations

import argparse
from pathlib import Path

from mindspeed_vita.addresses import is_address
from mindspeed_vita.checkpoint.folder_lock import RUN_LOCK, held
from mindspeed_vita.wording import counted


def _one_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="run folder, or a step folder")


def _prune_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="run folder")
    parser.add_argument("--keep", type=int, required=True, metavar="N", help="newest steps that stay")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")


def _reshard_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="run folder (its newest step is taken), or a step folder")
    parser.add_argument("--output", required=True, metavar="DIR", help="run folder to write to")
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="largest file (default 5GB)")
    parser.add_argument("--resume", action="store_true", help="refuse to begin anew: there must be a stopped one to go on with")


ACTIONS = {
    "list": ("steps of a run: size, layout, and whether a run resumes from them, judged by names and sizes of files", _one_folder),
    "verify": ("compare every file with its checksum; exit status 1 where one is damaged", _one_folder),
    "prune": ("remove all but the newest steps and the best one (eval.keep_best)", _prune_arguments),
    "reshard": ("write a step anew, optimizer included, with whole tensors in files of a chosen size", _reshard_arguments),
}


def run(arguments: argparse.Namespace) -> int:
    """Run one action."""
    folder = Path(arguments.folder)
    if is_address(arguments.folder):
        raise ValueError(
            f"{arguments.folder}: vita checkpoint works on folders; fetch it with the store's own tool, or with vita train --resume-from"
        )
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    actions = {"list": _list, "verify": _verify, "prune": _prune, "reshard": _reshard}
    return actions[arguments.action](folder, arguments)


def _list(folder: Path, arguments: argparse.Namespace) -> int:
    from mindspeed_vita.checkpoint.native.offline import summaries

    for step in summaries(folder):
        layout = " ".join(f"{axis}={size}" for axis in ("tp", "pp", "cp", "dp") if (size := (step.layout or {}).get(axis)))
        holds = f"resumes, written with {layout}" if step.resumes else "weights only"
        if step.problems:
            more = f" and {len(step.problems) - 3} more" if len(step.problems) > 3 else ""
            holds = f"does not load: {'; '.join(step.problems[:3])}{more}"
        print(f"{step.folder.name}: {step.num_bytes / 1e9:,.2f} GB in {counted(step.num_files, 'file')}, {holds}")
    print(f"Judged by names and sizes of files; `vita checkpoint verify {folder}` compares their content with the checksums.")
    return 0


def _verify(folder: Path, arguments: argparse.Namespace) -> int:
    from mindspeed_vita.checkpoint.native.offline import damage, steps_of

    damaged = 0
    for step in steps_of(folder):
        problems = damage(step)
        damaged += bool(problems)
        print(f"{step.name}: {'; '.join(problems) if problems else 'whole'}", flush=True)
    return 1 if damaged else 0


def _prune(folder: Path, arguments: argparse.Namespace) -> int:
    from mindspeed_vita.checkpoint.native import atomic

    if arguments.keep < 1:
        raise ValueError(f"--keep is {arguments.keep}; expected at least 1, so that a checkpoint stays")
    if not atomic.complete_steps(folder):
        raise ValueError(f"{folder} holds no whole checkpoint; expected a run folder with step_XXXXXXX folders")
    if arguments.dry_run:
        gone = atomic.surplus(folder, arguments.keep)
    else:
        with held(folder / RUN_LOCK, folder=folder, work="vita checkpoint prune", advice="wait until it ends, or stop it"):
            gone = atomic.prune(folder, arguments.keep)
    for step in gone:
        print(f"{step.name}: {'would go' if arguments.dry_run else 'removed'}")
    print(f"{counted(len(atomic.complete_steps(folder)), 'step')} in {folder}")
    return 0


def _reshard(folder: Path, arguments: argparse.Namespace) -> int:
    from mindspeed_vita.checkpoint.conversion import Conversion
    from mindspeed_vita.checkpoint.native import atomic
    from mindspeed_vita.checkpoint.native.full_weights import compared_with_checksums
    from mindspeed_vita.checkpoint.native.offline import other_files, reshard
    from mindspeed_vita.checkpoint.native.step_folder import find
    from mindspeed_vita.cli.bytes_bar import bytes_bar
    from mindspeed_vita.files.sizes import parse_size

    output, size = Path(arguments.output), parse_size(arguments.max_shard_size)
    step = find(folder)
    if (output / step.name).exists():
        raise ValueError(f"{output / step.name} is there already; choose another --output")
    advice = "choose another --output, or wait"
    with held(output / RUN_LOCK, folder=output, work="vita checkpoint reshard", advice=advice), bytes_bar(str(step)) as start:
        recorded = atomic.recorded(step)
        wait = compared_with_checksums(step, list(recorded))
        conversion = Conversion(must_go_on=arguments.resume, start=start, before_publishing=wait)
        written = reshard(step, output, max_file_bytes=size, conversion=conversion)
    unknown = [name for name in other_files(step) if name not in recorded]
    if unknown:
        print(f"copied as they are, since the step has no checksum of them: {', '.join(unknown)}")
    print(f"{written}: {counted(len(list(written.rglob('*.safetensors'))), 'file')} of tensors")
    return 0
