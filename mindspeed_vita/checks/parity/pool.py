"""A pool of worker processes that run functions under any parallel layout, so that many cases share a few process starts.

One pool serves one line of megatron-core. A layout's world size may be smaller than the pool: the other workers idle. Every run makes
its process groups anew. On a CPU one process imports torch and megatron and forks the workers, so a pool costs one import and not one
per worker. Accelerator libraries do not survive a fork: there every worker is a new process.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Optional

from mindspeed_vita.platform import get_platform

DEADLINE = 900.0
"""Seconds without any answer after which a run counts as stuck; the longest on two slow, busy cores takes about a third."""
LAST_WORDS = 5.0
"""Seconds that the other ranks have to say what they met, once one has failed: theirs may be the cause."""
STARTS = 2
"""How often a run's process groups are tried, each time by new workers. Gloo's connections on one host break off now and then."""


class _Failure(NamedTuple):
    """What a rank met.

    Attributes:
        text: its traceback.
        formed: whether its process groups had been formed by then.
    """

    text: str
    formed: bool


class LayoutPool:
    """Worker processes for layouts of up to `size` ranks.

    Args:
        size: largest world size.
        overlay: folder with packages, put first on the workers' path: another megatron-core, say; None takes the installed ones.
        prepare: "module:function" that every worker calls before its first run.
        environment: variables that the workers start with, beside this process's.
    """

    def __init__(
        self, size: int, overlay: Optional[str] = None, *, prepare: Optional[str] = None, environment: Optional[dict[str, str]] = None
    ) -> None:
        self._options = (size, overlay, prepare, environment)
        self._folder = tempfile.TemporaryDirectory()
        self._group = 0
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        self._start_workers()

    def _start_workers(self) -> None:
        size, overlay, prepare, environment = self._options
        context = multiprocessing.get_context("spawn")
        ends = [context.Pipe() for _ in range(size)]
        self._pipes = [here for here, _ in ends]
        there = [end for _, end in ends]
        # one process forks all workers, or each worker is a process with its own imports
        shares = [there] if prepare is None and get_platform(local_rank=0).name == "cpu" else [[end] for end in there]
        with _environment(environment or {}):
            for number, share in enumerate(shares):
                process = context.Process(target=_start, args=(share, number, overlay, prepare), daemon=True)
                process.start()
                self._processes.append(process)
        for end in there:
            end.close()

    def run(self, function: str, tp: int = 1, pp: int = 1, cp: int = 1, dp: int = 1, **arguments: Any) -> list[Any]:
        """Calls "module:function"(layout, **arguments) on every rank of the layout and returns the results by rank.

        Where the process groups cannot be formed, new workers try once more.

        Raises:
            RuntimeError: a rank failed, with its traceback and those of the ranks that failed with it; or ranks gave no answer for
                DEADLINE seconds, as when they wait for each other. The pool is closed then.
        """
        world = tp * pp * cp * dp
        assert world <= len(self._pipes), f"the pool has {len(self._pipes)} workers, the layout needs {world}"
        for start in range(1, STARTS + 1):
            results, failures = self._run_once(function, (tp, pp, cp), world, arguments)
            if not failures:
                return [results[rank] for rank in range(world)]
            self._end_workers()
            text = "\n".join(f"rank {rank}:\n{failure.text}" for rank, failure in failures.items())
            if start == STARTS or all(failure.formed for failure in failures.values()):
                break
            print(f"the process groups could not be formed, so new processes try again:\n{text}", file=sys.stderr, flush=True)
            self._start_workers()
        self.close()
        raise RuntimeError(text)

    def _run_once(
        self, function: str, sizes: tuple[int, int, int], world: int, arguments: dict[str, Any]
    ) -> tuple[dict[int, Any], dict[int, _Failure]]:
        """Results and failures by rank. After the first failure the others have LAST_WORDS seconds: they may wait for it for ever."""
        self._group += 1
        store = str(Path(self._folder.name) / f"group_{self._group}")
        pipes = self._pipes[:world]
        for pipe in pipes:
            pipe.send((function, sizes, world, store, arguments))
        results: dict[int, Any] = {}
        failures: dict[int, _Failure] = {}
        last = float("inf")
        while len(results) + len(failures) < world:
            waiting = {pipes[rank]: rank for rank in range(world) if rank not in results and rank not in failures}
            answers = wait(list(waiting), min(DEADLINE, last - time.monotonic()))
            if not answers and failures:
                break
            if not answers:
                self.close()
                ranks = list(waiting.values())
                raise RuntimeError(f"ranks {ranks} of {world} gave no answer in {DEADLINE} s: they may be waiting for each other")
            for ready in answers:
                rank = waiting[ready]  # type: ignore[index]
                failure, result = self._receive(pipes[rank])
                if failure is None:
                    results[rank] = result
                else:
                    failures[rank] = failure
                    last = min(last, time.monotonic() + LAST_WORDS)
        return results, failures

    @staticmethod
    def _receive(pipe: Connection) -> tuple[Optional[_Failure], Any]:
        try:
            return pipe.recv()  # type: ignore[no-any-return]
        except EOFError:
            return _Failure("the process ended", formed=True), None

    @property
    def closed(self) -> bool:
        """Whether the workers are gone."""
        return not self._pipes

    def close(self) -> None:
        """Ends the workers."""
        self._end_workers()
        self._folder.cleanup()

    def _end_workers(self) -> None:
        """One that idles sees its pipe close, one that still computes is killed."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=1)
            if process.is_alive():
                with suppress(ProcessLookupError):  # not yet a group of its own, or just gone
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
        self._pipes, self._processes = [], []


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Variables for the processes that start meanwhile: the path of shared libraries, say, is read only then."""
    saved = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start(pipes: list[Connection], first_rank: int, overlay: Optional[str], prepare: Optional[str]) -> None:
    """The body of a started process: serves its pipe, or forks one worker per pipe and waits for them."""
    os.setpgid(0, 0)  # so that it ends together with what it forks
    if overlay:
        sys.path.insert(0, overlay)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    if len(pipes) == 1:
        _serve(pipes[0], first_rank, prepare)
        return
    import_everything()
    workers = []
    for rank, pipe in enumerate(pipes):
        worker = os.fork()
        if not worker:
            for other in pipes:
                if other is not pipe:
                    other.close()
            _serve(pipe, rank, None)
            os._exit(0)
        workers.append(worker)
    for pipe in pipes:  # a worker's end must show at the other side as a closed pipe
        pipe.close()
    for worker in workers:
        os.waitpid(worker, 0)


def import_everything() -> None:
    """What a run imports, before the workers fork."""
    from mindspeed_vita.platform.megatron_compat import install_patches
    from mindspeed_vita.quiet import quiet_imports

    quiet_imports()
    get_platform().activate()
    install_patches()
    importlib.import_module("mindspeed_vita.engine.loop")


def _serve(pipe: Connection, rank: int, prepare: Optional[str]) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    while True:
        try:
            function, sizes, world, store, arguments = pipe.recv()
        except EOFError:
            return
        try:
            if prepare:
                _find(prepare)()
                prepare = None
            result = _call(function, sizes, world, store, rank, arguments)
            pipe.send((None, result))
        except BaseException as error:  # noqa: BLE001 - whatever it was, the test in the other process reports it
            pipe.send((_Failure(traceback.format_exc(), formed=not isinstance(error, _NotFormed)), None))
        # a model in a reference cycle keeps its process groups, and each of those keeps threads that poll
        gc.collect()


def _find(function: str) -> Callable[..., Any]:
    module, name = function.split(":")
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


class _NotFormed(Exception):
    """The process groups of a layout could not be formed."""


def _call(function: str, sizes: tuple[int, int, int], world: int, store: str, rank: int, arguments: dict[str, Any]) -> Any:
    import torch.distributed as dist

    from mindspeed_vita.platform.megatron_compat import destroy_model_parallel, install_patches
    from mindspeed_vita.quiet import quiet_imports

    quiet_imports()
    platform = get_platform()
    platform.activate()
    install_patches()
    from megatron.core import parallel_state, tensor_parallel

    from mindspeed_vita.parallel.layout import ParallelLayout

    tp, pp, cp = sizes
    try:
        try:
            dist.init_process_group(platform.collectives, rank=rank, world_size=world, store=dist.FileStore(store, world))
            parallel_state.initialize_model_parallel(tp, pp, context_parallel_size=cp)
        except RuntimeError as error:
            raise _NotFormed from error
        tensor_parallel.model_parallel_cuda_manual_seed(1234)
        return _find(function)(ParallelLayout.from_megatron(platform.device), **arguments)
    finally:
        destroy_model_parallel()
        if dist.is_initialized():
            dist.destroy_process_group()
