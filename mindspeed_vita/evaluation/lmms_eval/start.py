"""The model's start inside lmms-eval: options of --model_args, and the processes that torchrun made."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist

from mindspeed_vita.engine.session import world_size
from mindspeed_vita.evaluation.shared_session import LONGEST_PAUSE, SharedSession
from mindspeed_vita.files.sizes import parse_size
from mindspeed_vita.inference.ranks import TIMEOUT
from mindspeed_vita.inference.session import SessionSettings, load_session

_LOAD = ("tp", "cp", "max_frames", "max_pixels", "tokenizer", "recipe", "precision", "frame_pooling", "rope_scaling")
_SIZES = ("cache_memory", "prefill_chunk", "rank_timeout")
_LAUNCH = "torchrun --nproc_per_node N -m mindspeed_vita.evaluation.lmms_eval"


def open_shared(checkpoint: str, options: dict[str, Any]) -> SharedSession:
    """The session. Collective.

    Args:
        checkpoint: as load_session takes it.
        options: of --model_args.

    Raises:
        ValueError: an unknown option, or as load_session.
    """
    unknown = sorted(set(options) - {*_LOAD, *_SIZES})
    if unknown:
        known = ", ".join(("pretrained", "media_dir", *_LOAD, *_SIZES))
        raise ValueError(f"--model_args: unknown {', '.join(unknown)}; expected some of {known}")
    memory = options.get("cache_memory")
    settings = SessionSettings(
        cache_memory=None if memory is None else parse_size(str(memory), "cache_memory", unit_needed=True),
        rank_timeout=_seconds(options.get("rank_timeout")),
    )
    session = load_session(checkpoint, settings=settings, **{name: options[name] for name in _LOAD if name in options})
    return SharedSession(session, prefill_tokens=int(options.get("prefill_chunk", 8192)))


def _seconds(value: Any) -> float:
    try:
        seconds = TIMEOUT if value is None else float(value)
    except ValueError as error:
        raise ValueError(f"rank_timeout is {value!r}; expected a number of seconds") from error
    if not seconds > 0:
        raise ValueError(f"rank_timeout is {seconds:g}; expected more than 0 seconds")
    return seconds


def check_process_group() -> None:
    """Refuses a process group without gloo: rank 0 tells the other ranks what to do by it.

    Raises:
        ValueError: lmms-eval's own launch made such a group, as it does on GPUs.
    """
    if world_size() > 1 and dist.is_initialized() and "gloo" not in dist.get_backend_config():
        raise ValueError(f"the process group has no gloo ({dist.get_backend_config()}); start with `{_LAUNCH} --model long_vita ...`")


def begin_processes() -> None:
    """Makes the process group as the model needs it, where torchrun started several processes; lmms-eval then uses it.

    lmms-eval meets in it before and after each task, so it waits as long as a task may take.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from mindspeed_vita.platform import get_platform

        platform = get_platform()
        platform.activate()
        dist.init_process_group(platform.collectives, timeout=LONGEST_PAUSE)
