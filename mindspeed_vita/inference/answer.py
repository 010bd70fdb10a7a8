"""Answers to a list of requests, all at once: the same call on every rank, and the same answers on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Union

from mindspeed_vita.inference.request import Answer, Request
from mindspeed_vita.inference.request_loop import RequestLoop
from mindspeed_vita.inference.sampling import SamplingParams
from mindspeed_vita.inference.session import InferenceSession


def generate(
    session: InferenceSession, requests: Sequence[Request], params: Union[SamplingParams, Sequence[SamplingParams]], **budgets: Any
) -> list[Answer]:
    """Answers requests in one batch. Collective over the ranks of the session.

    Args:
        session: the loaded model.
        requests: what is asked.
        params: of all requests, or of each.
        budgets: of RequestLoop.

    Raises:
        ValueError: a request cannot be answered; on every rank.
    """
    if not session.ranks.first:
        answers: list[Answer] = session.serve()
        return answers
    each = [params] * len(requests) if isinstance(params, SamplingParams) else list(params)
    with session.leading() as outcome:
        outcome.result = answers = answer_all(RequestLoop(session, **budgets), list(zip(requests, each, strict=True)))
    return answers


def answer_all(loop: RequestLoop, requests: Sequence[tuple[Request, SamplingParams]]) -> list[Answer]:
    """Answers requests by a loop that is there already, with what its cache holds. First rank only.

    Raises:
        ValueError: a request cannot be answered.
    """
    numbers: list[int] = []
    try:
        for request, params in requests:
            numbers.append(loop.add(request, params))
    except ValueError:
        for number in numbers:
            loop.cancel(number)
        loop.step()  # all ranks let go of them
        raise
    answers: dict[int, Answer] = {}
    while len(answers) < len(numbers):
        answers.update({update.number: update.answer for update in loop.step() if update.answer is not None})
    return [answers[number] for number in numbers]
