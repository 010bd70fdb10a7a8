"""A pool of worker processes that run functions under any parallel layout, so that many cases share a few process starts.

One pool serves one line of megatron-core. A layout's world size may be smaller than the pool: the other workers idle. The process
group of a world size is made once per layout; workers are spawned and import megatron once.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import sys
import tempfile
import traceback
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Callable, Iterator, Optional

DEADLINE = 900.0
"""Seconds without any answer after which a run counts as stuck; the longest on two slow, busy cores takes about a third."""


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
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        self._group = 0
        self._workers: list[tuple[Any, Connection]] = []
        with _environment(environment or {}):
            for rank in range(size):
                here, there = context.Pipe()
                process = context.Process(target=_serve, args=(there, rank, overlay, prepare), daemon=True)
                process.start()
                there.close()
                self._workers.append((process, here))

    def run(self, function: str, tp: int = 1, pp: int = 1, cp: int = 1, dp: int = 1, **arguments: Any) -> list[Any]:
        """Calls "module:function"(layout, **arguments) on every rank of the layout and returns the results by rank.

        Raises:
            RuntimeError: a rank failed, with its traceback; or ranks gave no answer for DEADLINE seconds, as when they wait for each
                other. The pool is closed then.
        """
        self._group += 1
        world = tp * pp * cp * dp
        assert world <= len(self._workers), f"the pool has {len(self._workers)} workers, the layout needs {world}"
        store = str(Path(self._folder.name) / f"group_{self._group}")
        workers = self._workers[:world]
        for _, pipe in workers:
            pipe.send((function, (tp, pp, cp), world, store, arguments))
        results: dict[int, Any] = {}
        while len(results) < world:
            waiting = [rank for rank in range(world) if rank not in results]
            answers = wait([workers[rank][1] for rank in waiting], DEADLINE)
            if not answers:
                self.close()
                raise RuntimeError(f"ranks {waiting} of {world} gave no answer in {DEADLINE} s: they may be waiting for each other")
            for ready in answers:
                rank = next(number for number, (_, pipe) in enumerate(workers) if pipe is ready)
                text, results[rank] = self._receive(workers[rank][1])
                if text:  # the others may wait for this rank for ever
                    self.close()
                    raise RuntimeError(f"rank {rank}:\n{text}")
        return [results[rank] for rank in range(world)]

    @staticmethod
    def _receive(pipe: Connection) -> tuple[str, Any]:
        try:
            return pipe.recv()  # type: ignore[no-any-return]
        except EOFError:
            return "the process ended", None

    @property
    def closed(self) -> bool:
        """Whether the workers are gone."""
        return not self._workers

    def close(self) -> None:
        """Ends the workers."""
        for process, pipe in self._workers:
            pipe.close()
            process.join(timeout=1)
            if process.is_alive():
                process.kill()
        self._workers = []
        self._folder.cleanup()


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


def _serve(pipe: Connection, rank: int, overlay: Optional[str], prepare: Optional[str]) -> None:
    if overlay:
        sys.path.insert(0, overlay)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["LOCAL_RANK"] = str(rank)
    import torch

    torch.set_num_threads(1)
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
            pipe.send(("", result))
        except BaseException:  # noqa: BLE001 - whatever it was, the test in the other process reports it
            pipe.send((traceback.format_exc(), None))
        # a model in a reference cycle keeps its process groups, and each of those keeps threads that poll
        gc.collect()


def _find(function: str) -> Callable[..., Any]:
    module, name = function.split(":")
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


def _call(function: str, sizes: tuple[int, int, int], world: int, store: str, rank: int, arguments: dict[str, Any]) -> Any:
    import torch.distributed as dist

    from mindspeed_vita.engine.session import quiet_imports
    from mindspeed_vita.platform import get_platform
    from mindspeed_vita.platform.megatron_compat import destroy_model_parallel, install_patches

    quiet_imports()
    platform = get_platform()
    platform.activate()
    install_patches()
    from megatron.core import parallel_state, tensor_parallel

    from mindspeed_vita.parallel.layout import ParallelLayout

    dist.init_process_group(platform.backend, rank=rank, world_size=world, store=dist.FileStore(store, world))
    try:
        tp, pp, cp = sizes
        parallel_state.initialize_model_parallel(tp, pp, context_parallel_size=cp)
        tensor_parallel.model_parallel_cuda_manual_seed(1234)
        return _find(function)(ParallelLayout.from_megatron(platform.device), **arguments)
    finally:
        destroy_model_parallel()
        dist.destroy_process_group()
