"""What `vita generate`, `vita chat` and `vita serve` have in common: the checkpoint, the session and the memory of its cache.

How tokens are chosen is an argument of the first two only; a server's requests say it themselves.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindspeed_vita.addresses import is_address

if TYPE_CHECKING:
    from mindspeed_vita.inference.loading import FoundModel
    from mindspeed_vita.inference.sampling import SamplingParams
    from mindspeed_vita.inference.session import InferenceSession


def add_checkpoint_arguments(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Which model, and on how many processes; optional: the checkpoint may be left out."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", nargs="?" if optional else None,
                        help="native run or step folder, Hugging Face folder (Long-VITA or InternVL) or MindSpeed-LLM folder")  # fmt: skip
    parser.add_argument("--adapter", metavar="DIR", help="LoRA adapters (a run's folder or step, or peft's folder) that are merged into the"
                        " weights as they are loaded; a CHECKPOINT of adapters finds its base itself")  # fmt: skip
    parser.add_argument("--recipe", metavar="FILE", help="recipe with the sizes, where CHECKPOINT is a MindSpeed-LLM folder without them")
    parser.add_argument("--max-frames", type=int, metavar="N", help="most frames taken from a video; default: as in training")
    parser.add_argument("--frame-pooling", metavar="TEXT", help="fewer tokens for some frames of a video: slow_fast:every=4,factor=4 |"
                        " progressive:full=16,half=32,factor=4 | none; default: as a Hugging Face folder says, otherwise none")  # fmt: skip
    parser.add_argument("--rope-scaling", metavar="TEXT", help="positions beyond those of training, as the keys of the recipe's"
                        " model.language.rope_scaling or a file with them: {kind: yarn, factor: 4, original_positions: 32768}; default:"
                        " as in training")  # fmt: skip
    parser.add_argument("--tp", type=int, default=1, metavar="N", help="tensor parallel size, under torchrun (default 1)")
    parser.add_argument("--cp", type=int, default=1, metavar="N", help="context parallel size, under torchrun (default 1)")
    parser.add_argument("--rank-timeout", type=float, metavar="S", help="under torchrun: seconds that a process waits for another one"
                        " before all end (default 600)")  # fmt: skip
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE", help="Python module that registers the decoder of a"
                        " Hugging Face folder; may be repeated")  # fmt: skip
    parser.add_argument("--tokenizer", metavar="DIR", help="tokenizer folder, where the checkpoint's own is missing")
    parser.add_argument("--cache-memory", metavar="SIZE", help="memory of the key-value cache on each process, such as 20GB; default: 80%%"
                        " of what the device has free, on a CPU a quarter")  # fmt: skip
    parser.add_argument("--prefill-chunk", type=int, default=8192, metavar="N", help="most prompt tokens computed at a time (default 8192)")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """How tokens are chosen."""
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="most tokens of the answer (default 256)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default) takes the most likely token")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="only the K most likely tokens")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="the likeliest tokens that together have this probability")
    parser.add_argument("--min-p", type=float, default=0.0, metavar="P", help="tokens with this share of the likeliest one's probability")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1: fewer repeated tokens")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same answer")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="text that ends the answer; may be repeated")


def sampling(arguments: argparse.Namespace) -> SamplingParams:
    """The settings of sampling.

    Raises:
        ValueError: a value outside its range.
    """
    from mindspeed_vita.inference.sampling import SamplingParams

    if arguments.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens is {arguments.max_new_tokens}; expected at least 1")
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    settings: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    return SamplingParams(max_tokens=arguments.max_new_tokens, stop=tuple(arguments.stop), **settings)


def check_checkpoint(arguments: argparse.Namespace) -> Path:
    """The checkpoint's folder, after a look at what was asked. An address is fetched first, and its folder takes its place. Collective.

    Raises:
        ValueError: no folder, a number out of range, or as choose_step where the checkpoint is an address of a store.
    """
    if arguments.max_frames is not None and arguments.max_frames < 1:
        raise ValueError(f"--max-frames is {arguments.max_frames}; expected at least 1")
    if arguments.rank_timeout is not None and not arguments.rank_timeout > 0:
        raise ValueError(f"--rank-timeout is {arguments.rank_timeout:g}; expected more than 0 seconds")
    if arguments.prefill_chunk < 1:
        raise ValueError(f"--prefill-chunk is {arguments.prefill_chunk}; expected at least 1")
    if is_address(arguments.checkpoint):
        from mindspeed_vita.engine.chosen_step import choose_step

        arguments.checkpoint = str(choose_step(arguments.checkpoint))
    checkpoint = Path(arguments.checkpoint)
    if not checkpoint.is_dir():
        raise ValueError(
            f"checkpoint {checkpoint}: no such folder; expected a native run or step folder, a Hugging Face folder or a MindSpeed-LLM "
            "folder"
        )
    return checkpoint


def choose_model(arguments: argparse.Namespace) -> FoundModel:
    """What the checkpoint says of itself. From here on the arguments name the step that all processes use. Collective.

    Raises:
        ValueError: as find_model.
    """
    from mindspeed_vita.engine.chosen_step import choose_step
    from mindspeed_vita.inference.loading import find_model

    chosen = choose_step(arguments.checkpoint)
    arguments.checkpoint = str(chosen)
    if arguments.adapter is not None:
        arguments.adapter = choose_step(arguments.adapter)
    return find_model(chosen, arguments.recipe, adapter=arguments.adapter)


def open_session(arguments: argparse.Namespace) -> InferenceSession:
    """The session that the arguments ask for. Collective.

    Raises:
        ValueError: as load_session.
    """
    from mindspeed_vita.files.sizes import parse_size
    from mindspeed_vita.inference.session import SessionSettings, load_session

    memory = None if arguments.cache_memory is None else parse_size(arguments.cache_memory, "--cache-memory", unit_needed=True)
    names = ("tokenizer", "recipe", "adapter", "tp", "cp", "max_frames", "frame_pooling", "rope_scaling", "max_pixels")
    options = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    settings = SessionSettings(cache_memory=memory)
    if arguments.rank_timeout is not None:
        settings = replace(settings, rank_timeout=arguments.rank_timeout)
    return load_session(arguments.checkpoint, settings=settings, **options)
