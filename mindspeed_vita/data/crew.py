"""Who measures rows: this process alone, or processes of its own. Results come in the order of the jobs, whoever did them."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, TypeVar

from mindspeed_vita.data.index_file import FORMAT
from mindspeed_vita.data.lifetime import live_no_longer_than
from mindspeed_vita.data.measure import Measurer
from mindspeed_vita.data.media.limits import DecodeSettings
from mindspeed_vita.data.templates import get_template
from mindspeed_vita.data.tokenizer import BareTokenizer, tokenizer_fingerprint, vision_token_ids

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """What an index depends on beside the file itself."""

    tokenizer: Any
    """Loaded (tokenizer.load_tokenizer)."""
    template: str
    decoding: DecodeSettings

    def measurer(self) -> Measurer:
        """What measures samples."""
        ids = vision_token_ids(self.tokenizer)
        return Measurer(tokenizer=self.tokenizer, template=get_template(self.template), ids=ids, decoding=self.decoding)

    def key(self) -> str:
        """Equal keys measure equally; the file's own content is not part of it."""
        caps = self.decoding
        limits: list[Any] = [caps.max_bytes, caps.max_pixels, caps.max_video_frames, caps.max_video_seconds]
        limits += [] if caps.pixels == "shown" else [caps.pixels]
        return hashlib.sha256(json.dumps([FORMAT, tokenizer_fingerprint(self.tokenizer), self.template, limits]).encode()).hexdigest()


class Crew:
    """The processes that measure. None is started before there is work for several."""

    def __init__(self, settings: IndexSettings | None, processes: int, measurer: Measurer | None = None) -> None:
        """Settings may be None where a measurer is given and there is one process."""
        self._settings = settings
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None
        self._measurer = measurer

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if self._pool is not None:
            if kind is not None:  # a job under way may hold many videos: nobody wants its result
                for process in list((self._pool._processes or {}).values()):
                    process.terminate()
            self._pool.shutdown(cancel_futures=True)

    def here(self, work: Callable[[Measurer, _Job], _Result], jobs: Iterable[_Job]) -> Iterator[_Result]:
        """The result of each job, done in this process."""
        for job in jobs:
            self._measurer = self._measurer or self._given_settings().measurer()
            yield work(self._measurer, job)

    def together(
        self, work: Callable[[Measurer, _Job], _Result], jobs: Iterable[_Job], source: Callable[[_Job], str], *, ahead: int = 2
    ) -> Iterator[_Result]:
        """The result of each job, in the order of the jobs, done by all processes.

        Args:
            work: a function of a module, so that processes find it.
            jobs: taken one by one.
            source: file that a job is about, for messages.
            ahead: jobs that may wait, or be done too early, for each process: what they hold is in memory.

        Raises:
            ValueError: a process died. What a job raises is raised here, in the order of the jobs.
        """
        pool = self._started()
        waiting: deque[tuple[_Job, Future[_Result]]] = deque()
        try:
            for job in jobs:
                waiting.append((job, pool.submit(_do, work, job)))
                if len(waiting) >= ahead * self.processes:
                    yield waiting[0][1].result()
                    waiting.popleft()
            while waiting:
                yield waiting[0][1].result()
                waiting.popleft()
        except BrokenProcessPool as error:
            about = source(waiting[0][0] if waiting else job)
            raise ValueError(
                f"{about}: a process that measured its rows died (killed, perhaps for memory); data.index_processes=1 measures in one "
                "process and shows at which row"
            ) from error

    def _given_settings(self) -> IndexSettings:
        assert self._settings is not None, "a crew without settings has a measurer"
        return self._settings

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            settings = self._given_settings()
            start = (settings.tokenizer.backend_tokenizer.to_str(), settings.template, settings.decoding, os.getpid())
            # spawned: this process may hold an accelerator and threads, which a fork does not survive
            self._pool = ProcessPoolExecutor(self.processes, mp_context=get_context("spawn"), initializer=_start, initargs=start)
        return self._pool


_of_this_process: list[Measurer] = []


def _start(tokenizer: str, template: str, decoding: DecodeSettings, parent: int) -> None:
    live_no_longer_than(parent)
    settings = IndexSettings(tokenizer=BareTokenizer.from_text(tokenizer), template=template, decoding=decoding)
    _of_this_process[:] = [settings.measurer()]


def _do(work: Callable[[Measurer, _Job], _Result], job: _Job) -> _Result:
    return work(_of_this_process[0], job)
