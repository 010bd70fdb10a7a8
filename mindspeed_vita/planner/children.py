"""Traces in processes of their own: a trace leaves tensors without memory in caches, so the caller's process stays clean."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Optional, TypeVar

from mindspeed_vita.config import Recipe
from mindspeed_vita.config.load import import_plugins
from mindspeed_vita.data.lifetime import live_no_longer_than
from mindspeed_vita.planner.trace.packs import PackContent
from mindspeed_vita.planner.trace.result import Trace

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Job:
    """The arguments of one trace (see trace.step.trace)."""

    recipe: Recipe
    world: int
    rank: int
    micro_batches: Optional[int] = None
    content: Optional[PackContent] = None


def trace_all(jobs: Sequence[Job], processes: int, done: Callable[[int], None] = lambda number: None) -> list[Trace]:
    """The traces of some jobs, in their order.

    Args:
        jobs: what to trace. Jobs of one recipe that follow each other share some work.
        processes: how many traces run at a time. A trace of a full-size model takes about 1 GiB of this machine's memory.
        done: told the number of each job that is done.

    Raises:
        ValueError: one of the traces refuses its arguments, or its process was ended from outside.
    """
    return each_in_a_child(_trace, jobs, processes, done)


def each_in_a_child(
    function: Callable[[T], R], jobs: Sequence[T], processes: int, done: Callable[[int], None] = lambda number: None
) -> list[R]:
    """The results of a function that traces, in the order of the jobs.

    Args:
        function: of a module's top level. It says what a trace says on stderr.
        jobs: its arguments.
        processes, done: as for `trace_all`.

    Raises:
        ValueError: as `trace_all`.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, min(processes, len(jobs))), context, initializer=_start, initargs=(os.getpid(),)) as pool:
        futures = {pool.submit(function, job): number for number, job in enumerate(jobs)}
        try:
            for future in as_completed(futures):
                future.result()
                done(futures[future])
        except BrokenProcessPool as error:
            raise ValueError(
                f"a process that traced was ended from outside, perhaps because this machine ran out of memory; "
                f"try fewer than {processes} at a time (--processes)"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _start(parent: int) -> None:
    import torch

    by_ctrl_c = signal.getsignal(signal.SIGINT)
    live_no_longer_than(parent)
    signal.signal(signal.SIGINT, by_ctrl_c)  # nothing is lost when a trace stops at once
    os.environ["DEVICE"] = "cpu"
    torch.set_num_threads(1)


@contextmanager
def quiet(recipe: Recipe) -> Iterator[None]:
    """Around traces in a child: the recipe's plugins are there, and nobody hears of this machine's device and kernels."""
    import_plugins(recipe.plugins, "plugins")
    with redirect_stderr(io.StringIO()):
        yield


def _trace(job: Job) -> Trace:
    from mindspeed_vita.planner.trace.step import trace

    with quiet(job.recipe):
        return trace(job.recipe, job.world, job.rank, micro_batches=job.micro_batches, content=job.content)
