"""The request loop of a server: what fails while one request is prepared ends that request, not the server."""

from __future__ import annotations

from typing import Any, Optional

from mindspeed_vita.inference.request import Request
from mindspeed_vita.inference.request_loop import Prepared, RequestLoop
from mindspeed_vita.inference.sampling import SamplingParams
from mindspeed_vita.serving.engine import PreparationFailed

_FAULTS = (OSError, RuntimeError, MemoryError)
"""What this process can run out of: file descriptors, processes, memory."""


class ServedLoop(RequestLoop):
    """A RequestLoop that tells a failed preparation from a failed model. Takes the same arguments."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.session.prompts.decoder_name = "headers"  # requests are prepared in other threads than the one that decodes

    def prepare(self, request: Request) -> Prepared:
        """As RequestLoop.prepare.

        Raises:
            ValueError: the request cannot be answered.
            PreparationFailed: this process failed. No other rank took part and nothing is kept.
        """
        try:
            return super().prepare(request)
        except _FAULTS as error:
            raise PreparationFailed("a request could not be prepared") from error

    def take(self, prepared: Prepared, params: SamplingParams, *, time_limit: Optional[float] = None) -> int:
        """As RequestLoop.take.

        Raises:
            ValueError: the request cannot be answered.
            PreparationFailed: this process failed. No other rank took part and nothing is kept.
        """
        waiting = len(self.scheduler.waiting)
        try:
            return super().take(prepared, params, time_limit=time_limit)
        except _FAULTS as error:
            alone = self.session.ranks.size == 1  # otherwise the other ranks may have taken part
            if not alone or len(self.scheduler.waiting) != waiting:
                raise
            raise PreparationFailed("a request could not be prepared") from error
