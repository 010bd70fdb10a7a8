"""Process groups and seeds of a run: one process without a launcher, or many under torchrun."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Iterator

import torch.distributed as dist

from mindspeed_vita.config import Recipe, validate
from mindspeed_vita.engine.lifeline import LOST
from mindspeed_vita.parallel.layout import TIMEOUT, ParallelLayout
from mindspeed_vita.parallel.ring_groups import with_ring
from mindspeed_vita.platform import Platform, announce, megatron_compat
from mindspeed_vita.quiet import quiet_imports

_UNREACHED = ("connect", "closed by peer", "reset by peer", "Broken pipe")
"""Words of gloo's errors about another process; those of stores and devices' libraries have a type of their own."""
_STORE_SECONDS = 5.0
"""How long the processes' common store may take to say who reports an error."""
_STAY_SECONDS = 2.0
"""How long the process that keeps the common store stays after an error, so that others which meet the same error can ask."""


class NotConnected(RuntimeError):
    """The processes of a run could not be connected: one ended meanwhile, or they cannot reach each other."""

    status = LOST
    """What the command ends with: started again, it may run."""


def world_size() -> int:
    """Processes of this run: the running group's, else what torchrun set, else 1."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Processes of this run on this node, as torchrun says; without it, all of them.

    Raises:
        ValueError: LOCAL_WORLD_SIZE is not a positive number.
    """
    told = os.environ.get("LOCAL_WORLD_SIZE", "")
    if told and not (told.isdecimal() and int(told)):
        raise ValueError(f"LOCAL_WORLD_SIZE={told}; expected the number of processes on this node, as torchrun sets it; or unset it")
    return int(told) if told else world_size()


def rank() -> int:
    """This process's rank: the running group's, else what torchrun set, else 0."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def init_distributed(recipe: Recipe, platform: Platform) -> ParallelLayout:
    """Make this process part of the run: device, process groups, megatron's parallel state, seeds.

    A process group that exists already is used; then a parallel state of other sizes is replaced.

    Raises:
        ValueError: the recipe does not fit the number of processes. Raised before any group is made.
        NotConnected: the groups cannot be made.
    """
    validate(recipe, world_size())
    quiet_imports()
    platform.activate()
    megatron_compat.check_version()
    megatron_compat.install_patches()
    from megatron.core import parallel_state, tensor_parallel

    start_group(platform)
    announce(platform, rank=dist.get_rank())
    if parallel_state.model_parallel_is_initialized():
        megatron_compat.destroy_model_parallel()
    with _connecting():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=recipe.parallel.tp,
            pipeline_model_parallel_size=recipe.parallel.pp,
            context_parallel_size=recipe.parallel.cp,
            distributed_timeout_minutes=int(TIMEOUT.total_seconds() // 60),
            create_gloo_process_groups=False,  # every group carries gloo for CPU tensors already
        )
        platform.seed(recipe.train.seed)
        layout = with_ring(ParallelLayout.from_megatron(platform.device), recipe.parallel, local_world_size(), platform.device)
    # stages draw their own layers: with one seed for all, the third stage's would equal the second's
    tensor_parallel.model_parallel_cuda_manual_seed(recipe.train.seed + 100 * layout.pp_rank)
    return layout


def start_group(platform: Platform) -> None:
    """Makes the process group of this run, for one process or as torchrun says. Does nothing where there is one.

    Raises:
        NotConnected: it cannot be made.
    """
    if dist.is_initialized():
        return
    quiet_imports()
    platform.activate()
    if "RANK" in os.environ and "MASTER_ADDR" in os.environ:
        with _connecting():
            dist.init_process_group(platform.collectives, timeout=TIMEOUT)
    else:
        dist.init_process_group(platform.collectives, store=dist.HashStore(), rank=0, world_size=1, timeout=TIMEOUT)


@contextmanager
def _connecting() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        said = " ".join(str(error).split())
        if not isinstance(error, dist.DistError) and not any(word in said for word in _UNREACHED):
            raise
        raise NotConnected(
            f"process {rank()} of {world_size()} could not be connected to the others: one of them ended, or it cannot be reached "
            f"(MASTER_ADDR is {os.environ.get('MASTER_ADDR')}); see what the others said, and start again. What was met: {said[:200]}"
        ) from error


def shutdown() -> None:
    """Take down what `init_distributed` and `start_group` made. Does nothing where nothing is up."""
    if not dist.is_initialized():
        return
    from megatron.core import parallel_state

    if parallel_state.model_parallel_is_initialized():
        megatron_compat.destroy_model_parallel()
    dist.destroy_process_group()


@contextmanager
def distributed(recipe: Recipe, platform: Platform) -> Iterator[ParallelLayout]:
    """`init_distributed` for a block; groups that were up before stay up."""
    borrowed = dist.is_initialized()
    layout = init_distributed(recipe, platform)
    yield layout
    # not in a finally: after an error other ranks may be gone, and taking a group down waits for them
    if not borrowed:
        shutdown()


def first_to_report() -> bool:
    """Whether this process is the one that prints the error all are about to end with: the first one that fails.

    Before there is a process group torchrun's own store decides; where there is none, every process speaks for itself.
    """
    if world_size() == 1:
        return True
    if dist.is_initialized():
        store = dist.distributed_c10d._get_default_store()
    elif os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=10))
    else:
        return True
    # the process that keeps the store may hang, and then never answers
    answer: list[bool] = []
    asking = threading.Thread(target=_ask_store, args=(store, answer), name="vita-first", daemon=True)
    asking.start()
    asking.join(_STORE_SECONDS)
    return answer[0] if answer else True


def stay_for_others() -> None:
    """Before a process ends with an error: if it keeps the common store, it stays until the others have asked who reports.

    It stays for two seconds at most. Without the store, every process that meets the same error would report it again.
    """
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if agent or not dist.is_initialized() or dist.get_rank() != 0:
        return
    store, until = dist.distributed_c10d._get_default_store(), time.monotonic() + _STAY_SECONDS
    with suppress(dist.DistNetworkError, dist.DistStoreError):  # then nobody can ask it any more
        while time.monotonic() < until and store.add(_errors(), 0) < dist.get_world_size():
            time.sleep(0.02)


def _errors() -> str:
    """The store's key for the number of processes that met an error in this start."""
    return f"vita/errors/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _ask_store(store: dist.Store, answer: list[bool]) -> None:
    try:
        answer.append(store.add(_errors(), 1) == 1)
    except (dist.DistNetworkError, dist.DistStoreError):  # the process that keeps the store is gone, without having said why
        answer.append(True)
