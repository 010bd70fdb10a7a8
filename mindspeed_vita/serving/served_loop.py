"""The request loop of a server: what fails while one request is prepared ends that request, not the server."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any, Optional

from mindspeed_vita.data.assemble import EncodedSample
from mindspeed_vita.inference.block_names import TileSpan
from mindspeed_vita.inference.request import Request
from mindspeed_vita.inference.request_loop import RequestLoop
from mindspeed_vita.inference.sampling import SamplingParams
from mindspeed_vita.serving.engine import PreparationFailed


class ServedLoop(RequestLoop):
    """A RequestLoop that tells a failed preparation from a failed model. Takes the same arguments."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._encoding = False

    def admit(self, request: Request, params: SamplingParams, *, time_limit: Optional[float] = None) -> Generator[None, None, int]:
        """As RequestLoop.admit.

        Raises:
            ValueError: the request cannot be answered.
            PreparationFailed: an OSError, RuntimeError or MemoryError of this process. No other rank took part and nothing is kept.
        """
        self._encoding = True
        with closing(super().admit(request, params, time_limit=time_limit)) as slices:
            while True:
                waiting = len(self.scheduler.waiting)
                try:
                    next(slices)
                except StopIteration as done:
                    number: int = done.value
                    return number
                except (OSError, RuntimeError, MemoryError) as error:
                    alone = self.session.ranks.size == 1 or self._encoding
                    if not alone or len(self.scheduler.waiting) != waiting:
                        raise
                    raise PreparationFailed("a request could not be prepared") from error
                yield

    def _tile_spans(self, prompt: EncodedSample, waits: bool) -> Generator[None, None, tuple[TileSpan, ...]]:
        self._encoding = False  # the other ranks take part from here on
        return (yield from super()._tile_spans(prompt, waits))
