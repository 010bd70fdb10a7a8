"""Packs of one data-parallel rank, loaded in this process or in worker processes: the same stream, and a state of one integer."""

from __future__ import annotations

import gc
import os
import sys
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from itertools import count, islice
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from mindspeed_vita.data.at_work import AtWork
from mindspeed_vita.data.batch import PackedBatch
from mindspeed_vita.data.dataset import PackDataset
from mindspeed_vita.data.dealing import RelativeWork, StepOrder, deal, pack_costs
from mindspeed_vita.data.lifetime import end_by_parent_alone
from mindspeed_vita.data.pack_share import PackShare, PackStream

_T = TypeVar("_T")
_TIMED_OUT = "DataLoader timed out"
"""How torch's message begins; it has no exception of its own for it."""
_LATER = 15.0
"""Seconds that a rank waits longer than the rank which reads its packs, so that the latter reports the file that does not answer."""
_Finish = Callable[[PackedBatch], PackedBatch]


class PackLoader:
    """Endless packs of one rank, over all epochs.

    Step s has the packs from start_pack + s * global_batch on, at every data-parallel size; within the step they are dealt to the ranks by
    what they cost (dealing.py), the same way on every rank.
    """

    def __init__(
        self,
        dataset: PackDataset,
        *,
        start_pack: int,
        dp_rank: int,
        dp_size: int,
        micro_batches: int,
        work: RelativeWork | None = None,
        even_steps: int = 0,
        seed: int = 0,
        group_rank: int = 0,
        group_size: int = 1,
        ring_size: int = 1,
        node_size: int = 0,
        decode: bool = True,
        finish: _Finish | None = None,
        share: PackShare | None = None,
        num_workers: int = 0,
        prefetch: int = 2,
        longest_wait: float = 0.0,
    ) -> None:
        """Sets up the stream; nothing is read before the first pack is asked for.

        Args:
            dataset: the packs.
            start_pack: packs consumed so far, over all ranks.
            dp_rank: this rank among the data-parallel ranks.
            dp_size: data-parallel size.
            micro_batches: packs per rank and step.
            work: what attention and tiles cost, for dealing; may be None where dp_size is 1, as nothing is dealt there.
            even_steps: steps that exchange packs so that those of a step cost about the same (StepOrder); 0 keeps the order of the plan.
            seed: of the order of those steps.
            group_rank: this rank in the tensor x context parallel group that shares a pack's tiles.
            group_size: size of that group.
            ring_size: size of the context-parallel ring (ParallelLayout.ring_size).
            node_size: its ranks that share a node (ParallelLayout.node_size).
            decode: False gives packs without tiles, for pipeline stages that encode none.
            finish: what else is done to each pack in the process that assembles it.
            share: how the ranks of a host that need the same packs hand them on; None: this rank reads for itself.
            num_workers: worker processes; 0 assembles packs in this process.
            prefetch: packs each worker keeps ready.
            longest_wait: seconds that a pack from the workers may take; 0 waits for ever.

        Raises:
            ValueError: a number is out of range.
        """
        counts = (("start_pack", start_pack, 0), ("micro_batches", micro_batches, 1), ("num_workers", num_workers, 0))
        for name, value, least in (*counts, ("prefetch", prefetch, 1)):
            if value < least:
                raise ValueError(f"{name}={value}; expected {least} or more")
        if not 0 <= dp_rank < dp_size or not 0 <= group_rank < group_size:
            raise ValueError(f"rank {dp_rank} of {dp_size}, group rank {group_rank} of {group_size}; expected rank < size")
        assert (dp_size == 1 and even_steps < 2) or work is not None, "packs are dealt by their cost"
        self.micro_batches = micro_batches
        self.global_batch = micro_batches * dp_size
        rank = {"group_rank": group_rank, "group_size": group_size, "ring_size": ring_size, "node_size": node_size, "decode": decode}
        self._view = _RankView(dataset, rank, finish)
        self._start = start_pack
        self._dp = (dp_rank, dp_size)
        self._work = work

        def costs_of(numbers: Sequence[int]) -> np.ndarray:
            assert work is not None
            return pack_costs(dataset, numbers, work)

        self._order = StepOrder(costs_of, global_batch=self.global_batch, window=even_steps, seed=seed)
        self._num_workers = num_workers
        self._prefetch = prefetch
        self._longest_wait = longest_wait + (_LATER if longest_wait and share is not None and not share.leads else 0)
        self._share = share
        self.waited = 0.0
        """Seconds that packs were waited for, since the loader was made."""
        self._given = 0
        # weak: a loader that is dropped takes its workers along at once
        self._packs: weakref.ref[Generator[PackedBatch, None, None]] | None = None

    @property
    def packs_consumed(self) -> int:
        """Packs of all ranks up to the last whole step given out: start_pack of a loader that goes on from here."""
        return self._start + self._given // self.micro_batches * self.global_batch

    def packs_of_step(self, place: int) -> Sequence[int]:
        """Global pack numbers, over all ranks, of the step before which `place` packs were consumed."""
        return self._order.packs(place)

    def numbers(self) -> Iterator[int]:
        """Global pack numbers of this rank, endless."""
        step, done = divmod(self._given, self.micro_batches)
        return islice(self._numbers_from(step), done, None)

    def counted(self) -> Iterator[int]:
        """What a sampler counts that deals packs in turn, rank by rank, and knows no costs; in each step the same packs over all ranks."""
        rank, size = self._dp
        return count(self._start + rank + self._given * size, size)

    def _numbers_from(self, first_step: int) -> Iterator[int]:
        rank, size = self._dp
        for step in count(first_step):
            first = self._start + step * self.global_batch
            numbers = self._order.packs(first)
            if self._work is None or size == 1:
                yield from numbers
            else:
                dealt = deal(pack_costs(self._view.dataset, numbers, self._work), size)
                yield from (numbers[pack] for pack in dealt[rank])

    def __iter__(self) -> Iterator[PackedBatch]:
        """Packs from where the last iteration stopped; that one ends."""
        self.close()
        packs = self._iterate()
        self._packs = weakref.ref(packs)
        return packs

    def close(self) -> None:
        """Ends the iteration and its worker processes; iterating again goes on from there."""
        packs = self._packs() if self._packs is not None else None
        if packs is not None:
            packs.close()

    def _iterate(self) -> Generator[PackedBatch, None, None]:
        shared = self._view.shared = None if self._share is None else self._share.open()
        stream = self._stream()
        try:
            while True:
                asked = time.perf_counter()
                batch = self._next(stream)
                self.waited += time.perf_counter() - asked
                self._given += 1
                yield batch
        finally:
            if shared is not None:
                shared.end()
            if isinstance(stream, _MultiProcessingDataLoaderIter):
                # torch has no public name for it, and dropping the iterator is not enough: a traceback may hold it
                stream._shutdown_workers()

    def _next(self, stream: Iterator[PackedBatch]) -> PackedBatch:
        """The next pack.

        Raises:
            ValueError: it took longer than the longest wait.
        """
        try:
            return next(stream)
        except RuntimeError as error:
            if not str(error).startswith(_TIMED_OUT):
                raise
            states = "; ".join(map(self._state, range(self._num_workers), stream._workers))  # type: ignore[attr-defined]
            raise ValueError(
                f"no pack came from the loader processes within {self._longest_wait:g} seconds (data.loader_seconds): {states}. A file "
                "system that does not answer is the usual cause: look at these files, then resume; raise data.loader_seconds if packs "
                "really take that long"
            ) from error

    def _state(self, number: int, worker: Any) -> str:
        """A loader process and what it reads."""
        state = "" if worker.is_alive() else " (ended)"
        reads = self._at_work.of(number)
        return f"process {worker.pid}{state} reads {reads or 'nothing yet'}"

    def _stream(self) -> Iterator[PackedBatch]:
        if not self._num_workers:
            return map(self._view.__getitem__, self.numbers())
        # The packs of the first epoch are planned before the fork, once for all workers.
        self._view.dataset.locate(self._start + (self._given // self.micro_batches + 1) * self.global_batch)
        self._at_work = AtWork(self._num_workers)
        loader = torch.utils.data.DataLoader(
            self._view,
            batch_size=None,
            sampler=_Numbers(self),
            num_workers=self._num_workers,
            prefetch_factor=self._prefetch,
            timeout=self._longest_wait,
            collate_fn=_unchanged,
            worker_init_fn=partial(_start_worker, self._at_work),
            # Its own generator: the loader draws a seed, and the model's random numbers must not depend on num_workers.
            generator=torch.Generator(),
        )
        return iter(loader)


class _RankView(torch.utils.data.Dataset):
    """The packs as one rank sees them."""

    def __init__(self, dataset: PackDataset, rank: dict[str, Any], finish: _Finish | None) -> None:
        self.dataset = dataset
        self.shared: PackStream | None = None
        """Of the iteration that goes on."""
        self._finish = finish
        self._rank = rank

    def __getitem__(self, number: int) -> PackedBatch:
        pack = self.dataset.pack(number, **self._rank, shared=self.shared)
        return self._finish(pack) if self._finish else pack


class _Numbers(torch.utils.data.Sampler):
    def __init__(self, loader: PackLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[int]:
        return self._loader.numbers()


def _unchanged(batch: _T) -> _T:
    return batch


def _start_worker(at_work: AtWork, worker: int) -> None:
    at_work.take(worker)
    # What the run left to the collector, such as process groups, is not this process's to take down. And its pages stay shared.
    gc.freeze()
    # Ctrl-C, and a launcher's SIGTERM, reach every process of a run: it is the run's to end its workers, after the step it finishes.
    end_by_parent_alone()
    # The thread that hands tensors over reports a run that stopped in the middle of taking one; its going is reported by the run itself.
    sys.excepthook = _report_unless_the_run_is_gone
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _report_unless_the_run_is_gone(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)
