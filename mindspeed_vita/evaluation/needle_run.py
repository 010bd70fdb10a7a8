"""Asks the cases of a needle test by the scheduler, and writes each answer down as it comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mindspeed_vita.evaluation.needle_cases import Case
from mindspeed_vita.evaluation.needle_count import ANSWER_TOKENS
from mindspeed_vita.evaluation.needle_media import NeedleMedia
from mindspeed_vita.evaluation.needle_record import NeedleRecord
from mindspeed_vita.inference.request_loop import RequestLoop
from mindspeed_vita.inference.sampling import SamplingParams

_AT_ONCE = 16
"""Most requests that are read ahead. The scheduler lets one wait while another computes the frames that both begin with."""


def answer_cases(
    loop: RequestLoop, cases: Sequence[Case], kind: str, media: NeedleMedia, record: NeedleRecord, said: Callable[[int], None]
) -> None:
    """Asks the cases that have no answer yet, in their order. First rank only.

    Args:
        loop: of the session.
        cases: of Grid.cases.
        kind: video or pictures.
        media: draws the frames.
        record: where the answers go.
        said: called with the number of cases that have an answer, whenever it grows.

    Raises:
        ValueError: a request fails.
    """
    left = [case for case in cases if case.key not in record.rows][::-1]
    running: dict[int, Case] = {}
    while left or running:
        while left and len(running) < _AT_ONCE:
            case = left.pop()
            number = loop.add(media.request(case, kind), SamplingParams(max_tokens=ANSWER_TOKENS))
            running[number] = case
        for update in loop.step():
            if update.answer is not None:
                case = running.pop(update.number)
                media.remove(case)
                record.add(case, update.answer)
        said(len(record.rows))
