"""A session for evaluators: every rank hands in requests of its own, the model answers them together, each rank gets its own answers back.

Evaluators deal a benchmark's rows to processes as if each had a model. Here tp x cp processes share one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Optional

import torch.distributed as dist

from mindspeed_vita.data.templates import get_template
from mindspeed_vita.evaluation.answer_tokens import answer_tokens
from mindspeed_vita.evaluation.clips import ClipEncoder
from mindspeed_vita.inference.request import Answer, Request
from mindspeed_vita.inference.request_loop import RequestLoop
from mindspeed_vita.inference.sampling import SamplingParams
from mindspeed_vita.inference.session import InferenceSession

LONGEST_PAUSE = timedelta(days=1)
"""How long a rank waits for the others' next requests. What an evaluator does meanwhile, such as building a task, has no known length."""


class SharedSession:
    """One rank's side. Collective.

    Args:
        session: the loaded model. It then takes parts of videos too, see clips.py.
        budgets: of RequestLoop.
    """

    def __init__(self, session: InferenceSession, **budgets: Any) -> None:
        self.session = session
        loaded = session.loaded
        session.prompts = ClipEncoder(loaded.recipe, loaded.tokenizer, loaded.frame_pooling)
        self._loop = RequestLoop(session, **budgets) if session.ranks.first else None
        self._group = None
        if session.ranks.size > 1:  # the group of `ranks` waits for as long as a step may take only
            members = dist.get_process_group_ranks(session.ranks.group)
            self._group = dist.new_group(members, backend="gloo", timeout=LONGEST_PAUSE)

    def tokens_of(self, text: str) -> tuple[int, ...]:
        """The tokens of an answer's text, as training encodes it."""
        loaded = self.session.loaded
        return answer_tokens(get_template(loaded.recipe.data.template), loaded.tokenizer, text)

    def answers(self, requests: Sequence[tuple[str, Request, SamplingParams]]) -> list[Answer]:
        """The answers to this rank's requests. Collective: every rank calls it, with as many requests as it has.

        Args:
            requests: a name for messages, what is asked, and how tokens are chosen.

        Raises:
            ValueError: a request of any rank cannot be answered; on every rank.
            ConnectionError: another rank is gone or hangs.
        """
        everyone = self._gathered(list(requests))
        flat = [request for own in everyone for request in own]
        if self._loop is None:
            answers: list[Answer] = self.session.serve()
        else:
            with self.session.leading() as outcome:
                outcome.result = answers = _answer_in_turn(self._loop, flat)
        first = sum(map(len, everyone[: self.session.ranks.rank]))
        return answers[first : first + len(requests)]

    def _gathered(self, requests: list[Any]) -> list[list[Any]]:
        ranks = self.session.ranks
        if ranks.size == 1:
            return [requests]
        found: list[Optional[list[Any]]] = [None] * ranks.size
        with ranks.explained("handing in its requests", LONGEST_PAUSE.total_seconds()):
            dist.all_gather_object(found, requests, group=self._group)
        return [own or [] for own in found]


def _answer_in_turn(loop: RequestLoop, requests: Sequence[tuple[str, Request, SamplingParams]]) -> list[Answer]:
    """Answers in the order of the requests. Only some are prepared ahead, so that their media do not fill the memory."""
    answers: dict[int, Answer] = {}
    running: dict[int, int] = {}
    next_one = 0
    try:
        while len(answers) < len(requests):
            while next_one < len(requests) and len(running) < 2 * loop.scheduler.budgets.sequences:
                name, request, params = requests[next_one]
                try:
                    running[loop.add(request, params)] = next_one
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
                next_one += 1
            for update in loop.step():
                if update.answer is not None:
                    place = running.pop(update.number)
                    if update.answer.reason == "error":
                        raise ValueError(f"{requests[place][0]}: {update.answer.message}")
                    answers[place] = update.answer
    except ConnectionError:
        raise
    except (ValueError, OSError):
        _cancel(loop, running)
        raise
    return [answers[place] for place in range(len(requests))]


def _cancel(loop: RequestLoop, running: dict[int, int]) -> None:
    """Ends what runs, so that the loop can be used again."""
    for number in running:
        loop.cancel(number)
    loop.step()  # all ranks let go of them
