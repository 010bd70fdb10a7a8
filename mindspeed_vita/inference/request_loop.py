"""Requests to answers on rank 0: prompts go to the scheduler, its steps to all ranks, logits to tokens, tokens to text.

One call of `step` is one step of the model. Whoever calls it decides when: `generate` until all is answered, a server as long as it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Optional

import torch

from mindspeed_vita.checkpoint.hf.tokenizer import stop_ids
from mindspeed_vita.data.assemble import EncodedSample, Medium
from mindspeed_vita.inference.block_names import root_name
from mindspeed_vita.inference.block_pool import BlockCounts, BlockPool
from mindspeed_vita.inference.request import Answer, Fault, Request
from mindspeed_vita.inference.sampling import SampledToken, SamplingParams, SamplingRow, broken_rows, sample
from mindspeed_vita.inference.scheduler import Budgets, Scheduler
from mindspeed_vita.inference.sequence import Ended, NewSequence
from mindspeed_vita.inference.session import InferenceSession
from mindspeed_vita.inference.steps import Step
from mindspeed_vita.inference.text_stream import TextStream
from mindspeed_vita.inference.tile_memo import MediaContent, TileMemo, read_content
from mindspeed_vita.inference.tile_names import TileNames


@dataclass(frozen=True)
class Prepared:
    """A request of which everything is done that needs neither the model nor other requests."""

    prompt: EncodedSample
    """Its tokens, and its media ready to be cut."""
    contents: tuple[MediaContent, ...]
    """Of each medium; none where the prompt is too long to be taken."""


@dataclass(frozen=True)
class Update:
    """What a step brought one request."""

    number: int
    """The request."""
    text: str
    """Text that can be shown now; the pieces of all updates together are the answer's text."""
    answer: Optional[Answer] = None
    """The whole answer, once it has ended."""
    tokens: tuple[SampledToken, ...] = ()
    """The tokens since the update before, where log-probabilities were asked for."""


@dataclass
class _Active:
    """A request that waits or runs."""

    prompt_tokens: int
    row: SamplingRow
    stream: TextStream
    frames: tuple[int, ...] = ()
    tokens: list[SampledToken] = field(default_factory=list)
    watched: tuple[float, ...] = ()
    num_told: int = 0
    """Tokens that an update had."""
    fault: Fault = "time"
    """Whose fault it is if it ends with an error. The scheduler by itself ends a request with an error only when its time is over."""

    def untold(self) -> tuple[SampledToken, ...]:
        """The tokens that no update had yet."""
        if self.row.params.logprobs is None:
            return ()
        told, self.num_told = self.num_told, len(self.tokens)
        return tuple(self.tokens[told:])


class RequestLoop:
    """The side of a session that decides. First rank only, inside InferenceSession.leading; the others call InferenceSession.serve.

    Args:
        session: the loaded model.
        prefill_tokens: most prompt tokens of a step; activations grow with it.
        sequences: most requests that are computed at once.
        max_length: most tokens of prompt and answer; None: as many as the model has positions.
        answer_tokens: most tokens of an answer where the request leaves it open; None: as many as there is room for.

    Raises:
        ValueError: budgets in which nothing could be computed.
    """

    def __init__(
        self,
        session: InferenceSession,
        *,
        prefill_tokens: int = 8192,
        sequences: int = 64,
        max_length: Optional[int] = None,
        answer_tokens: Optional[int] = None,
    ) -> None:
        recipe, layout, size = session.loaded.recipe, session.loaded.layout, session.settings.block_size
        self.session, self._answer_tokens = session, answer_tokens
        positions = recipe.model.language.max_positions
        self.pool = BlockPool(session.cache.num_blocks, layout.cp_size)
        budgets = Budgets(
            prefill_tokens=max(size, prefill_tokens // size * size),
            sequences=sequences,
            max_length=positions if max_length is None else min(max_length, positions),
        )
        self.scheduler = Scheduler(self.pool, budgets, root=root_name(session.loaded.identity), block_size=size)
        self.memo = TileMemo()
        feed = session.runner.feed
        media = {"tile_size": feed.tile_size, "decoding": asdict(feed.decoding), "pixels": feed.pixels}
        self._names = TileNames(self.memo, media, recipe.model.tokens_per_tile)
        tokenizer = session.loaded.tokenizer
        self._stops = frozenset(stop_ids(tokenizer, recipe.data.template, recipe.model.language.family))
        self._banned = frozenset(session.prompts.ids.placeholders)
        self._active: dict[int, _Active] = {}

    @property
    def idle(self) -> bool:
        """Whether no request waits or runs."""
        return not self._active

    def counts(self) -> list[BlockCounts]:
        """Blocks of each context-parallel rank."""
        return self.pool.counts()

    def add(self, request: Request, params: SamplingParams, *, time_limit: Optional[float] = None) -> int:
        """Takes a request; returns its number.

        Args:
            request: what is asked.
            params: how tokens are chosen.
            time_limit: seconds until it is ended with an error, waiting included.

        Raises:
            ValueError: a medium cannot be used, or prompt and answer fit neither the model nor the cache. Nothing is kept of it.
        """
        return self.take(self.prepare(request), params, time_limit=time_limit)

    def prepare(self, request: Request) -> Prepared:
        """The part of `add` that needs neither the model nor other requests: the prompt's tokens, and one reading of each medium.

        Raises:
            ValueError: a medium cannot be used, or the text holds what none may hold.
        """
        prompt = self.session.prompts.encode(request)
        if len(prompt.tokens_T) >= self.scheduler.room():  # the scheduler will refuse it
            return Prepared(prompt, ())
        contents = []
        for medium in prompt.media:
            with _readable(medium):
                contents.append(read_content(medium.path))
        return Prepared(prompt, tuple(contents))

    def take(self, prepared: Prepared, params: SamplingParams, *, time_limit: Optional[float] = None) -> int:
        """The rest of `add`: arguments, result and errors are the same. Media are decoded later, in the steps that compute them."""
        _check_tokens(params, self.session.runner.vocab_size, self._stops)
        prompt = prepared.prompt
        length, room = len(prompt.tokens_T), self.scheduler.room()
        left = max(1, room - length if self._answer_tokens is None else min(room - length, self._answer_tokens))
        most = left if params.max_tokens is None else params.max_tokens
        params = replace(params.seeded(), max_tokens=most)
        fits = length + most <= room  # otherwise the scheduler will refuse it
        tiles = self._names.spans(prompt, prepared.contents) if fits else ()
        # keys of long sequences are turned otherwise under LongRoPE, so that other sequences cannot use them
        turned = "long" if self.session.loaded.model.rotary.is_long(length + most) else ""
        options: dict[str, Any] = {"stop_ids": self._stops, "time_limit": time_limit, "turned": turned}
        number = self.scheduler.add(NewSequence(tokens=prompt.tokens_T, tiles=tiles, max_tokens=most, **options))
        self.session.add(number, prompt, longest=length + most)
        self._names.watch(number, prompt, prepared.contents)
        row = SamplingRow(params=params, stop_ids=self._stops, banned_ids=self._banned, prompt=torch.from_numpy(prompt.tokens_T))
        stream = TextStream(self.session.loaded.tokenizer, params.stop, min_tokens=params.min_tokens)
        frames = tuple(len(medium.numbers) for medium in prompt.media if medium.grid is None)
        self._active[number] = _Active(length, row, stream, frames)
        return number

    def cancel(self, number: int) -> None:
        """Ends a request; its blocks are free from the next step on. One that has ended is left alone."""
        self.scheduler.end(number)

    def beat(self) -> None:
        """Fails if another rank is gone. Collective, as step."""
        self.session.beat()

    def step(self) -> list[Update]:
        """Computes one step and returns what it brought. Collective: the other ranks must be in InferenceSession.serve."""
        step = self.scheduler.schedule()
        updates = self._updates({}) if step.empty and not step.ended else self._execute(step)
        if self.idle:  # no later step will tell the ranks what they need not keep
            last = self.scheduler.schedule()
            if last.ended:
                self.session.execute(last)
        return updates

    def _execute(self, step: Step) -> list[Update]:
        pieces: dict[int, str] = {}
        result = self.session.execute(step)
        for number, failure in result.failures.items():
            self._fail(number, "media", f"{failure.path} {failure.reason}")
        for number, digests in result.digests.items():
            self._learn(number, digests)
        for row in broken_rows(result.logits):
            self._fail(step.sampled[row], "model", "the model's logits are not finite; the weights or their precision are at fault")
        kept = [place for place, number in enumerate(step.sampled) if self._active[number].fault == "time"]
        fine = [step.sampled[place] for place in kept]
        chosen = dict(zip(fine, sample(result.logits[kept], [self._active[number].row for number in fine])))
        for number, token in chosen.items():
            self._active[number].watched = token.watched or self._active[number].watched
            if token.token not in self._stops:
                pieces[number] = self._append(number, token)
        if not step.empty:
            self.scheduler.update(step, {number: token.token for number, token in chosen.items()})
        return self._updates(pieces)

    def _learn(self, number: int, digests: dict[int, bytes]) -> None:
        """Names blocks by the tiles that a step decoded for a request."""
        if self._active[number].fault != "time":  # it failed: its tiles may be blank
            return
        try:
            learnt = self._names.learn(number, digests)
        except ValueError as error:
            self._fail(number, "media", str(error))
            return
        for sequence, named in learnt.items():
            self.scheduler.learn(sequence, named)

    def _fail(self, number: int, fault: Fault, message: str) -> None:
        """Ends a request with an error. The first one counts."""
        active = self._active[number]
        if active.fault == "time":
            active.fault = fault
            self.scheduler.end(number, "error", message)

    def _append(self, number: int, token: SampledToken) -> str:
        """Adds a token to an answer; returns the text that can be shown. A stop string ends the request."""
        active = self._active[number]
        active.row.add(token.token)
        active.tokens.append(token)
        piece = active.stream.push(token.token)
        if active.stream.stopped_by is not None:
            self.scheduler.end(number, "stop")
        return piece

    def _updates(self, pieces: dict[int, str]) -> list[Update]:
        ended = {one.sequence: one for one in self.scheduler.take_ended()}
        going = [(number, piece) for number, piece in pieces.items() if piece and number not in ended]
        found = [Update(number, piece, tokens=self._active[number].untold()) for number, piece in going]
        return [*found, *(self._finish(one, pieces.get(number, "")) for number, one in ended.items())]

    def _finish(self, ended: Ended, piece: str) -> Update:
        active = self._active.pop(ended.sequence)
        self._names.forget(ended.sequence)
        piece += active.stream.finish()
        reason = "stop" if active.stream.stopped_by is not None else ended.reason
        answer = Answer(
            text=active.stream.text,
            token_ids=tuple(token.token for token in active.tokens),
            prompt_tokens=active.prompt_tokens,
            reason=reason,
            message=ended.message,
            fault=active.fault if reason == "error" else "",
            cached_tokens=ended.cached_tokens,
            frames=active.frames,
            tokens=tuple(active.tokens) if active.row.params.logprobs is not None else (),
            watched=active.watched,
        )
        return Update(ended.sequence, piece, answer, active.untold())


def _check_tokens(params: SamplingParams, vocab_size: int, stops: frozenset[int]) -> None:
    unknown = [token for token in (*params.forced, *params.watched) if token >= vocab_size]
    if unknown:
        raise ValueError(f"forced or watched tokens {unknown} are none of the model's {vocab_size}; take ids of its tokenizer")
    ends = sorted(stops.intersection(params.forced))
    if ends:
        raise ValueError(f"forced tokens {ends} are stop tokens of the model, which end an answer; leave them out of the text to force")


@contextmanager
def _readable(medium: Medium) -> Iterator[None]:
    """A file that is gone is the request's fault."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{medium.path} cannot be read ({error.strerror})") from error
