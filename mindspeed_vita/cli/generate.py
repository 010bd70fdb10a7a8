"""`vita generate CHECKPOINT --prompt TEXT --image FILE ...`, and many requests by `--batch FILE --output FILE`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindspeed_vita.cli.answering import (
    add_checkpoint_arguments,
    add_sampling_arguments,
    check_checkpoint,
    choose_model,
    open_session,
    sampling,
)

if TYPE_CHECKING:
    from mindspeed_vita.inference.request import Answer, Generator, Request
    from mindspeed_vita.inference.sampling import SamplingParams
    from mindspeed_vita.inference.session import InferenceSession

_EPILOG = """
examples:
  vita generate runs/stage2 --prompt "What is it?" --image photo.jpg
  vita generate exported --prompt "Compare <image> with <image>." --image a.png --image b.png
  vita generate exported --prompt "What happens?" --video clip.mp4 --temperature 0.7 --top-p 0.9
  vita generate exported --prompt "What happens?" --video film.mp4 --max-frames 512 --frame-pooling slow_fast:every=8,factor=4
  vita generate exported --prompt "What happens?" --video film.mp4 --rope-scaling "{kind: yarn, factor: 4, original_positions: 32768}"
  vita generate exported --batch questions.jsonl --output answers.jsonl
  torchrun --nproc_per_node 4 -m mindspeed_vita.cli.main generate runs/stage4 --tp 2 --cp 2 --prompt "What happens?" --video film.mp4

Media without a tag in the prompt are put before it. A line of a batch file is {"prompt": TEXT} or {"messages": [...]}, with "images" and
"videos"; the same command goes on where a stop left off. --decode fixed recomputes the whole sequence for each token: slow, and greedy.
"""
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop")
_CACHED_ONLY = (*_SAMPLING, "batch", "cache_memory", "prefill_chunk")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.epilog = _EPILOG
    add_checkpoint_arguments(parser)
    parser.add_argument("--prompt", help="the question; <image> and <video> say where the media stand")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="a picture; may be repeated")
    parser.add_argument("--video", action="append", default=[], metavar="FILE", help="a video file or a folder of frames; may be repeated")
    parser.add_argument("--batch", metavar="FILE", help="requests, a line of JSON each, in place of --prompt")
    parser.add_argument("--output", metavar="FILE", help="with --batch: where the answers go; those that are there are not asked again")
    add_sampling_arguments(parser)
    parser.add_argument("--decode", choices=("cached", "fixed"), default="cached", help="cached (default): keys and values are computed"
                        " once | fixed: everything is computed anew for each token, as a baseline")  # fmt: skip
    parser.set_defaults(defaults={name: parser.get_default(name) for name in _CACHED_ONLY})


def run(arguments: argparse.Namespace) -> int:
    """Print the answer, or write those of a batch."""
    from mindspeed_vita.config import import_plugins
    from mindspeed_vita.engine.session import rank, shutdown
    from mindspeed_vita.inference.request import ask

    import_plugins(arguments.plugin, "--plugin")
    params = sampling(arguments)
    if (arguments.prompt is None) == (arguments.batch is None):
        raise ValueError("give either --prompt TEXT or --batch FILE")
    if (arguments.batch is None) != (arguments.output is None):
        raise ValueError("--batch FILE and --output FILE go together")
    if arguments.batch is not None and (arguments.image or arguments.video):
        raise ValueError("--image and --video go with --prompt; the lines of a batch file name their own media")
    checkpoint = check_checkpoint(arguments)  # last: it may fetch the checkpoint
    if arguments.batch is not None:
        return _batch(arguments, params)
    request = ask(arguments.prompt, arguments.image, arguments.video)
    if rank() == 0:
        print(f"loading {checkpoint}", file=sys.stderr, flush=True)
    if arguments.decode == "fixed":
        _refuse_without_cache(arguments)
        answer = _fixed(arguments, checkpoint).generate(request, max_new_tokens=arguments.max_new_tokens)
        if rank() == 0:
            print(answer.text, end="", flush=True)
    else:
        answer = _cached(open_session(arguments), request, params, arguments.prefill_chunk)
    speaks = rank() == 0
    shutdown()
    if not speaks:
        return 0
    print(flush=True)
    print(f"{answer.prompt_tokens} prompt tokens, {len(answer.token_ids)} generated", file=sys.stderr)
    return 0


def _refuse_without_cache(arguments: argparse.Namespace) -> None:
    unused = [name for name in _CACHED_ONLY if getattr(arguments, name) != arguments.defaults[name]]
    if unused:
        names = ", ".join("--" + name.replace("_", "-") for name in unused)
        raise ValueError(f"--decode fixed is greedy and has no cache; leave {names} out")


def _fixed(arguments: argparse.Namespace, checkpoint: Path) -> Generator:
    options: dict[str, Any] = {"tokenizer": arguments.tokenizer, "max_frames": arguments.max_frames}
    if not _exported(checkpoint):
        from mindspeed_vita.inference.generate import load_generator

        if arguments.frame_pooling not in (None, "none"):
            raise ValueError(
                "--decode fixed computes a pack as training does, where no frame is pooled; leave out --frame-pooling or --decode, or "
                f"export {checkpoint}: a Long-VITA folder of Hugging Face format pools frames either way"
            )
        return load_generator(
            checkpoint,
            **options,
            recipe=arguments.recipe,
            adapter=arguments.adapter,
            tp=arguments.tp,
            cp=arguments.cp,
            rope_scaling=arguments.rope_scaling,
        )
    from mindspeed_vita.inference.hf_generate import load_hf

    if (arguments.tp, arguments.cp) != (1, 1):
        raise ValueError(f"{checkpoint} is a Hugging Face folder; --decode fixed reads it in one process, without --tp and --cp")
    if arguments.recipe is not None:
        raise ValueError(f"{checkpoint} says its sizes itself; leave --recipe out")
    if arguments.adapter is not None:
        raise ValueError(f"{checkpoint} is a Hugging Face folder, and --decode fixed merges no adapter into it; leave --decode out")
    if arguments.rope_scaling is not None:
        raise ValueError(
            f"{checkpoint} is a Hugging Face folder; --decode fixed takes positions as its config.json says: export it with "
            "`vita convert --rope-scaling`, or leave --decode out"
        )
    return load_hf(checkpoint, **options, frame_pooling=arguments.frame_pooling)


def _exported(checkpoint: Path) -> bool:
    """Whether a folder is a Long-VITA of Hugging Face format, so that transformers decodes it with our modelling code."""
    from mindspeed_vita.checkpoint.hf.config import family_of
    from mindspeed_vita.checkpoint.hf.load import read_config

    return (checkpoint / "config.json").is_file() and family_of(read_config(checkpoint)) is not None


def _cached(session: InferenceSession, request: Request, params: SamplingParams, prefill_chunk: int) -> Answer:
    """The answer, on every rank; the first one prints it as it comes."""
    if not session.ranks.first:
        found: Answer = session.serve()
        return found
    from mindspeed_vita.inference.request_loop import RequestLoop

    with session.leading() as outcome:
        loop = RequestLoop(session, prefill_tokens=prefill_chunk)
        loop.add(request, params)
        while True:
            for update in loop.step():
                print(update.text, end="", flush=True)
                if update.answer is not None:
                    if update.answer.reason == "error":
                        raise ValueError(update.answer.message)
                    outcome.result = update.answer
                    return update.answer


def _batch(arguments: argparse.Namespace, params: SamplingParams) -> int:
    from mindspeed_vita.engine.session import rank, shutdown
    from mindspeed_vita.inference.batch_file import BatchFile, answer_file

    chosen = {name: getattr(arguments, name) for name in ("tokenizer", "max_frames", "frame_pooling", "rope_scaling")}
    found = choose_model(arguments)
    settings = {"checkpoint": found.identity, "params": asdict(params), **chosen}
    batch = BatchFile(Path(arguments.batch), Path(arguments.output), json.dumps(settings, sort_keys=True, default=str))
    if not batch.left:
        if rank() == 0:
            print(batch, file=sys.stderr)
        shutdown()
        return 0
    session = open_session(arguments)
    if session.ranks.first:
        from mindspeed_vita.inference.batch_progress import BatchProgress
        from mindspeed_vita.inference.request_loop import RequestLoop

        with session.leading(), BatchProgress(batch.path.name, len(batch.lines), len(batch.done)) as progress:
            loop = RequestLoop(session, prefill_tokens=arguments.prefill_chunk)
            for problem in answer_file(loop, batch, params, at_once=2 * loop.scheduler.budgets.sequences, said=progress.done):
                progress.line(problem)
        print(batch, file=sys.stderr)
    else:
        session.serve()
    shutdown()
    return 0
