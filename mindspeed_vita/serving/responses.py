"""Answers in OpenAI's form: whole, as chunks of a stream, and the events that carry them."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Optional

from mindspeed_vita.inference.sampling import SampledToken
from mindspeed_vita.inference.sequence import FinishReason
from mindspeed_vita.serving.errors import ApiError

DONE = b"data: [DONE]\n\n"
"""The last event of a stream."""
_LOWEST = -9999.0
"""What OpenAI writes for a log-probability of minus infinity, which JSON does not have."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of the `n` answers to a request."""

    text: str
    reason: FinishReason
    tokens: tuple[SampledToken, ...] = ()
    """With log-probabilities, where those were asked for."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of a request; those of the answers added up over the choices."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    frames: tuple[int, ...] = ()
    """Frames taken from each video."""

    def body(self) -> dict[str, Any]:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            # video_frames is ours: clients skip what they do not know
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, **({"video_frames": list(self.frames)} if self.frames else {})},
        }


@dataclass(frozen=True, kw_only=True)
class Reply:
    """Everything that the responses to one request have in common.

    Attributes:
        model: the name of the served model.
        chat: a chat completion; False: a completion.
        text_of: the text of one token, for log-probabilities.
        logprobs: whether they were asked for.
    """

    model: str
    chat: bool
    text_of: Callable[[int], str]
    logprobs: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    key: str = field(default_factory=lambda: secrets.token_hex(12))

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        """The response to a request that is not streamed."""
        return {**self._head(chunk=False), "choices": [self._whole(place, one) for place, one in enumerate(choices)], "usage": usage.body()}

    def first(self, choice: int) -> dict[str, Any]:
        """The chunk that a chat's stream starts with for each choice."""
        return self._chunk(choice, {"role": "assistant", "content": ""})

    def piece(self, choice: int, text: str, tokens: Sequence[SampledToken] = ()) -> dict[str, Any]:
        """A chunk with a piece of text and the tokens that it came from."""
        return self._chunk(choice, {"content": text}, tokens=tokens)

    def last(self, choice: int, reason: FinishReason) -> dict[str, Any]:
        """The chunk that ends a choice."""
        return self._chunk(choice, {}, reason=finish_reason(reason))

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The chunk after all choices, if it was asked for."""
        return {**self._head(chunk=True), "choices": [], "usage": usage.body()}

    def _head(self, *, chunk: bool) -> dict[str, Any]:
        kind = "text_completion" if not self.chat else "chat.completion.chunk" if chunk else "chat.completion"
        return {"id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.key}", "object": kind, "created": self.created, "model": self.model}

    def _whole(self, place: int, choice: Choice) -> dict[str, Any]:
        said: dict[str, Any] = {"text": choice.text}
        if self.chat:
            said = {"message": {"role": "assistant", "content": choice.text, "refusal": None}}
        return {"index": place, **said, "logprobs": self._logprobs(choice.tokens), "finish_reason": finish_reason(choice.reason)}

    def _chunk(
        self, choice: int, delta: dict[str, Any], *, reason: Optional[str] = None, tokens: Sequence[SampledToken] = ()
    ) -> dict[str, Any]:
        said = {"delta": delta} if self.chat else {"text": delta.get("content", "")}
        logprobs = self._logprobs(tokens) if tokens else None
        return {**self._head(chunk=True), "choices": [{"index": choice, **said, "logprobs": logprobs, "finish_reason": reason}]}

    def _logprobs(self, tokens: Sequence[SampledToken]) -> Optional[dict[str, Any]]:
        if not self.logprobs:
            return None
        if self.chat:
            content = [
                {**self._token(one.token, one.logprob), "top_logprobs": [self._token(*alternative) for alternative in one.top]}
                for one in tokens
            ]
            return {"content": content, "refusal": None}
        texts = [self.text_of(one.token) for one in tokens]
        starts = list(accumulate(map(len, texts), initial=0))[:-1]
        return {
            "tokens": texts,
            "token_logprobs": [_finite(one.logprob) for one in tokens],
            "top_logprobs": [{self.text_of(token): _finite(logprob) for token, logprob in one.top} for one in tokens],
            "text_offset": starts,
        }

    def _token(self, token: int, logprob: Optional[float]) -> dict[str, Any]:
        text = self.text_of(token)
        # a part of a character has no text of its own, and its bytes are not known from it
        held = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
        return {"token": text, "logprob": _finite(logprob), "bytes": held}


def finish_reason(reason: FinishReason) -> str:
    """OpenAI's word for how an answer ended.

    Raises:
        ApiError: it ended by an error, or was cancelled by the server; such an answer is no answer.
    """
    if reason in ("stop", "length"):
        return reason
    raise ApiError(503, "the request was ended by the server before its answer was complete", code=f"request_{reason}")


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'), allow_nan=False)}\n\n".encode()


def _finite(logprob: Optional[float]) -> Optional[float]:
    return logprob if logprob is None else max(logprob, _LOWEST)
