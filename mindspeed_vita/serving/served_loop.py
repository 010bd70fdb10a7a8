"""The request loop of a server: what fails while one request is prepared ends that request, not the server."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Optional, Union

from mindspeed_vita.inference.request import Request
from mindspeed_vita.inference.request_loop import Prepared, RequestLoop
from mindspeed_vita.inference.sampling import SamplingParams
from mindspeed_vita.serving.engine import PreparationFailed


class ServedLoop(RequestLoop):
    """A RequestLoop that tells a failed preparation from a failed model. Takes the same arguments."""

    def admit(
        self, asked: Union[Request, Prepared], params: SamplingParams, *, time_limit: Optional[float] = None
    ) -> Generator[None, None, int]:
        """As RequestLoop.admit.

        Raises:
            ValueError: the request cannot be answered.
            PreparationFailed: an OSError, RuntimeError or MemoryError of this process. No other rank took part and nothing is kept.
        """
        with closing(super().admit(asked, params, time_limit=time_limit)) as slices:
            while True:
                waiting = len(self.scheduler.waiting)
                try:
                    next(slices)
                except StopIteration as done:
                    number: int = done.value
                    return number
                except (OSError, RuntimeError, MemoryError) as error:
                    if len(self.scheduler.waiting) != waiting:  # the other ranks may have heard of it
                        raise
                    raise PreparationFailed("a request could not be prepared") from error
                yield
