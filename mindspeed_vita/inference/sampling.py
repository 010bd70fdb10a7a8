"""From logits to tokens: penalties, bans, temperature and truncation as in transformers, drawn with a seed of the request's own.

A row's token depends on its logits, its parameters and its own history only, not on the rows next to it.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Optional

import torch

_MOST_LOGPROBS = 20
_LOWEST_TEMPERATURE = 0.01
_MOST_STOPS = 16
_HIGHEST_TOP_K = 2**31 - 1
"""More than any vocabulary has, and still a tensor's number."""
_PENALTIES = (0.01, 100.0)
"""Of repetition_penalty. Beyond them, logits would become infinite, and no token could be drawn."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen, and when an answer ends.

    Raises:
        ValueError: a value outside its range.
    """

    temperature: float = 0.0
    """0 takes the most likely token (greedy); otherwise logits are divided by it, at least 0.01."""
    top_k: int = 0
    """Only the k most likely tokens, and those as likely as the last of them; 0 takes all."""
    top_p: float = 1.0
    """Only the most likely tokens that together have this probability; 1 takes all."""
    min_p: float = 0.0
    """Only tokens with at least this share of the most likely one's probability."""
    repetition_penalty: float = 1.0
    """Divides positive logits, and multiplies negative ones, of tokens in prompt or answer (arXiv 1909.05858)."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens in the answer."""
    frequency_penalty: float = 0.0
    """Subtracted from the logits of tokens in the answer, once for each time."""
    seed: Optional[int] = None
    """The same seed, prompt and parameters give the same answer. None draws one."""
    max_tokens: Optional[int] = None
    """Tokens of the answer at most; None: as many as the model and the cache have room for."""
    min_tokens: int = 0
    """Before so many tokens, no stop token is chosen and stop strings do not end the answer."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer and are not part of it; at most 16."""
    ignore_end: bool = False
    """The model's stop tokens are never chosen, so the answer ends by its length or a stop string. For measurements."""
    logprobs: Optional[int] = None
    """None: no log-probabilities; otherwise that of the chosen token, and so many of the most likely ones, at most 20."""
    forced: tuple[int, ...] = ()
    """Ids of the answer's first tokens, whatever the model would choose; with `logprobs` a given text is scored so. No stop tokens."""
    watched: tuple[int, ...] = ()
    """Ids of tokens whose log-probabilities come with the answer's first token, such as the letters of options. Needs `logprobs`."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("repetition_penalty", *_PENALTIES),
            ("presence_penalty", -2.0, 2.0),
            ("frequency_penalty", -2.0, 2.0),
            ("temperature", 0.0, math.inf),
        ):
            _check_number(name, getattr(self, name), low, high)
        if self.top_p == 0:
            raise ValueError("top_p=0 leaves no token; expected more than 0, and 1 to switch it off")
        if 0 < self.temperature < _LOWEST_TEMPERATURE:
            raise ValueError(f"temperature={self.temperature}; expected 0 (greedy) or at least {_LOWEST_TEMPERATURE}")
        _check_integer("top_k", self.top_k, 0, _HIGHEST_TOP_K)
        _check_integer("min_tokens", self.min_tokens, 0)
        if self.seed is not None:
            _check_integer("seed", self.seed, -(2**63), 2**64 - 1)
        if self.max_tokens is not None:
            _check_integer("max_tokens", self.max_tokens, 1)
            if self.min_tokens > self.max_tokens:
                raise ValueError(f"min_tokens={self.min_tokens} is more than max_tokens={self.max_tokens}")
        if self.logprobs is not None:
            _check_integer("logprobs", self.logprobs, 0, _MOST_LOGPROBS)
        if not isinstance(self.stop, (tuple, list)) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop={self.stop!r}; expected several texts, none of them empty")
        if len(self.stop) > _MOST_STOPS:
            raise ValueError(f"stop has {len(self.stop)} texts; expected at most {_MOST_STOPS}")
        for name in ("forced", "watched"):
            for token in getattr(self, name):
                _check_integer(f"a token of {name}", token, 0)
        if self.watched and self.logprobs is None:
            raise ValueError(f"watched={self.watched} asks for log-probabilities; set logprobs, at least to 0")
        if not isinstance(self.ignore_end, bool):
            raise ValueError(f"ignore_end={self.ignore_end!r}; expected true or false")

    def seeded(self) -> SamplingParams:
        """The same with a seed: a random one where none was given."""
        return self if self.seed is not None else replace(self, seed=secrets.randbits(63))


@dataclass(eq=False)
class SamplingRow:
    """What the choice of one sequence's next token depends on besides its logits."""

    params: SamplingParams
    """With a seed (SamplingParams.seeded)."""
    stop_ids: frozenset[int] = frozenset()
    """The model's stop tokens."""
    banned_ids: frozenset[int] = frozenset()
    """Tokens never chosen, such as the places of tiles."""
    prompt: Sequence[int] | torch.Tensor = ()
    """Token ids of the prompt, for the repetition penalty."""
    counts: Counter[int] = field(default_factory=Counter)
    """How often each token is in the answer."""
    num_tokens: int = 0
    """Tokens of the answer so far."""
    _prompt_ids: Optional[torch.Tensor] = None

    def add(self, token: int) -> None:
        """The token was taken into the answer."""
        self.counts[token] += 1
        self.num_tokens += 1

    def seen(self) -> torch.Tensor:
        """int64[n]: ids in prompt or answer; some of the answer's may be there twice."""
        if self._prompt_ids is None:
            self._prompt_ids = torch.as_tensor(self.prompt, dtype=torch.int64).unique()
        return torch.cat([self._prompt_ids, torch.tensor(list(self.counts), dtype=torch.int64)])

    def forbidden(self) -> list[int]:
        """Ids that may not be chosen now."""
        early = self.params.ignore_end or self.num_tokens < self.params.min_tokens
        return sorted(self.banned_ids | self.stop_ids if early else self.banned_ids)

    def uniform(self) -> float:
        """A number in [0, 1) that follows from the seed and the token's place in the answer."""
        digest = hashlib.sha256(f"{self.params.seed} {self.num_tokens}".encode()).digest()
        return (int.from_bytes(digest[:8], "little") >> 11) / 2**53


@dataclass(frozen=True)
class SampledToken:
    """A chosen token."""

    token: int
    logprob: Optional[float] = None
    """Its log-probability in the model's own distribution: before penalties, bans, temperature and truncation."""
    top: tuple[tuple[int, float], ...] = ()
    """The most likely tokens with theirs, most likely first."""
    watched: tuple[float, ...] = ()
    """The log-probabilities of SamplingParams.watched, in their order; with the answer's first token only."""


@torch.no_grad()
def sample(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken]:
    """Chooses a token for each row. Does not add it to the row's history.

    Args:
        logits: fp32[rows, vocabulary]; left as they are.
        rows: one for each row of logits.
    """
    scores = processed(logits, rows)
    tokens = scores.argmax(-1).cpu()
    drawn = [place for place, row in enumerate(rows) if row.params.temperature > 0]
    if drawn:
        uniforms = torch.tensor([rows[place].uniform() for place in drawn], dtype=torch.float64)
        tokens[drawn] = _draw(scores[drawn].cpu(), uniforms)
    for place, row in enumerate(rows):
        if row.num_tokens < len(row.params.forced):
            tokens[place] = row.params.forced[row.num_tokens]
    asked = [place for place, row in enumerate(rows) if row.params.logprobs is not None]
    found = dict(zip(asked, _logprobs(logits[asked], tokens[asked], [rows[place] for place in asked]))) if asked else {}
    return [found.get(place, SampledToken(token)) for place, token in enumerate(tokens.tolist())]


@torch.no_grad()
def broken_rows(logits: torch.Tensor) -> list[int]:
    """The rows that no token can be chosen from, because they hold NaN or infinity. Such a request is to be ended with an error.

    Args:
        logits: fp32[rows, vocabulary].
    """
    # the sum over a row is finite only if every number in it is; fp64 cannot overflow here
    return torch.nonzero(~logits.sum(-1, dtype=torch.float64).isfinite())[:, 0].tolist()


@torch.no_grad()
def processed(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> torch.Tensor:
    """Logits after penalties, bans and, for rows that are drawn, temperature, top-k, top-p and min-p, in transformers' order.

    Args:
        logits: fp32[rows, vocabulary]; left as they are.
        rows: one for each row of logits.

    Returns:
        fp32[rows, vocabulary]; -inf where a token cannot be chosen.
    """
    assert logits.dtype == torch.float32 and logits.shape[0] == len(rows), f"{logits.dtype} {tuple(logits.shape)} for {len(rows)} rows"
    scores = logits.clone()
    for place, row in enumerate(rows):
        _penalize(scores[place], row)
        forbidden = row.forbidden()
        if forbidden:
            scores[place, forbidden] = -math.inf
    for name, neutral, warp in _WARPERS:
        chosen = [place for place, row in enumerate(rows) if row.params.temperature > 0 and getattr(row.params, name) != neutral]
        if chosen:
            values = torch.tensor([[getattr(rows[place].params, name)] for place in chosen], dtype=torch.float64, device="cpu")
            scores[chosen] = warp(scores[chosen], values)
    return scores


def _penalize(scores: torch.Tensor, row: SamplingRow) -> None:
    """Applies the penalties to one row, in place."""
    params = row.params
    if params.repetition_penalty != 1:
        ids = row.seen()
        ids = ids[ids < len(scores)].to(scores.device)
        found = scores[ids]
        scores[ids] = torch.where(found < 0, found * params.repetition_penalty, found / params.repetition_penalty)
    if row.counts and (params.presence_penalty or params.frequency_penalty):
        ids = torch.tensor(list(row.counts), device=scores.device)
        times = torch.tensor(list(row.counts.values()), dtype=scores.dtype, device=scores.device)
        scores[ids] -= params.presence_penalty + params.frequency_penalty * times


def _temperature(scores: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    return scores / temperature.to(scores)


def _top_k(scores: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    last = top_k.long().clamp(max=scores.shape[-1]) - 1
    largest = torch.topk(scores, int(last.max()) + 1).values
    return scores.masked_fill(scores < largest.gather(1, last.to(scores.device)), -math.inf)


def _top_p(scores: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    ascending, order = torch.sort(scores, dim=-1, stable=True)
    gone = ascending.softmax(-1).cumsum(-1) <= (1 - top_p).to(scores)
    gone[:, -1] = False
    return scores.masked_fill(gone.scatter(1, order, gone), -math.inf)


def _min_p(scores: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    probabilities = scores.softmax(-1)
    highest = probabilities.amax(-1, keepdim=True)
    return scores.masked_fill(probabilities < min_p.to(scores) * highest, -math.inf)


_Warp = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_WARPERS: tuple[tuple[str, float, _Warp], ...] = (
    ("temperature", 1.0, _temperature),
    ("top_k", 0, _top_k),
    ("top_p", 1.0, _top_p),
    ("min_p", 0.0, _min_p),
)
"""Name of the parameter, the value that changes nothing, and what it does to rows of scores, given a column of values."""


def _draw(scores: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Tokens at the given places of the cumulative distribution: int64[rows].

    Args:
        scores: fp32[rows, vocabulary].
        uniforms: fp64[rows], in [0, 1).
    """
    cumulative = scores.softmax(-1).double().cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    token = torch.searchsorted(cumulative, uniforms[:, None] * total, right=True)
    last = torch.searchsorted(cumulative, total)  # the last token that can be chosen: the product above may be rounded up to the total
    return torch.minimum(token, last)[:, 0]


def _logprobs(logits: torch.Tensor, tokens: torch.Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken]:
    everything = logits.log_softmax(-1)
    most = [row.params.logprobs or 0 for row in rows]
    chosen = everything.gather(1, tokens[:, None].to(logits.device))[:, 0].tolist()
    values, ids = torch.topk(everything, min(max(most), logits.shape[-1]))
    tops = [tuple(zip(row_ids, row_values))[:count] for row_ids, row_values, count in zip(ids.tolist(), values.tolist(), most)]
    watched = [() if row.num_tokens else row.params.watched for row in rows]
    seen = [tuple(everything[place, list(ids)].tolist()) if ids else () for place, ids in enumerate(watched)]
    return [SampledToken(*found) for found in zip(tokens.tolist(), chosen, tops, seen)]


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high or value > sys.float_info.max:
        expected = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
        raise ValueError(f"{name}={value!r}; expected a number {expected}")


def _check_integer(name: str, value: object, low: int, high: Optional[int] = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        expected = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name}={value!r}; expected a whole number {expected}")
