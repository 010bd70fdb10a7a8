"""Requests as OpenAI's API writes them, and what follows from them for sampling.

A field that would change the answer and is not supported is refused unless it has its neutral value. Fields that change no answer are
accepted. Any other name is refused, as OpenAI does.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Optional, Union

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from mindspeed_vita.inference.sampling import SamplingParams

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "web_search_options": (),
}
"""Fields that this server does not have, with the values that ask for nothing. None always asks for nothing."""
_WITHOUT_EFFECT = (
    *("metadata", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"),
    *("prompt_cache_retention", "verbosity"),
)
"""Fields that change no answer here."""


class _Strict(BaseModel):
    """No conversions between types, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True)


class MediaUrl(_Strict):
    """Where a medium is: a data: URL, an http(s) URL or a file below the server's media root."""

    url: str
    detail: Optional[Literal["auto", "low", "high"]] = None
    """OpenAI's hint; the tiling follows from the checkpoint."""


class TextPart(_Strict):
    """Text of a message."""

    type: Literal["text"]
    text: str


def _is_object(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        raise ValueError(f'found a text; expected {{"type": "{info.field_name}", "{info.field_name}": {{"url": "..."}}}}')
    return value


MediaPlace = Annotated[MediaUrl, BeforeValidator(_is_object)]


class ImagePart(_Strict):
    """A picture."""

    type: Literal["image_url"]
    image_url: MediaPlace


class VideoPart(_Strict):
    """A video."""

    type: Literal["video_url"]
    video_url: MediaPlace


Part = Annotated[Union[TextPart, ImagePart, VideoPart], Field(discriminator="type")]


class ChatMessage(_Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Union[str, list[Part]]
    name: Optional[str] = None
    """Accepted; the chat templates have no names."""


class StreamOptions(_Strict):
    """Options of a streamed answer."""

    include_usage: bool = False
    """A last chunk says how many tokens there were."""
    include_obfuscation: bool = False
    """Accepted and not used."""


class _Generation(_Strict):
    """What chat and completion requests share."""

    model: Optional[str] = None
    max_tokens: Optional[int] = Field(default=None, ge=1)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    n: int = Field(default=1, ge=1, le=128)
    seed: Optional[int] = None
    stop: Optional[Union[str, list[str]]] = None
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    stream: bool = False
    stream_options: Optional[StreamOptions] = None
    # not OpenAI's, but what other servers call the same
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        known = {}
        for name, value in values.items():
            if name in cls.model_fields:
                if value is not None or name in ("messages", "prompt"):
                    known[name] = value  # null is the default, as OpenAI has it
            elif name in _NEUTRAL:
                if value is not None and value not in _NEUTRAL[name]:
                    raise ValueError(f"{name} is not supported by this server; leave it out")
            elif name not in _WITHOUT_EFFECT:
                known[name] = value
        return known

    @model_validator(mode="after")
    def _fits_together(self) -> Any:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed with stream=true")
        self.sampling()
        return self

    @property
    def answer_tokens(self) -> Optional[int]:
        """Tokens of the answer at most; None where the request leaves it open."""
        return self.max_tokens

    @property
    def num_logprobs(self) -> Optional[int]:
        """See SamplingParams.logprobs."""
        return None

    def sampling(self, choice: int = 0) -> SamplingParams:
        """The sampling of one of the `n` choices. With a seed, choice i has seed + i, so that choices differ and can be had again.

        Raises:
            ValueError: a value outside its range.
        """
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParams(
            temperature=self.temperature,
            top_k=max(self.top_k, 0),  # other servers write -1 for all
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=None if self.seed is None else self.seed + choice,
            max_tokens=self.answer_tokens,
            min_tokens=self.min_tokens,
            stop=tuple(stops),
            logprobs=self.num_logprobs,
        )


class ChatRequest(_Generation):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Optional[int] = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: Optional[int] = Field(default=None, ge=0, le=20)

    @model_validator(mode="after")
    def _fits_a_chat(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is only allowed with logprobs=true")
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            raise ValueError(f"max_tokens={old} and max_completion_tokens={new} differ; give one of them")
        if self.messages[-1].role != "user":
            raise ValueError(f"the last message is the {self.messages[-1].role}'s; expected the user's, which is to be answered")
        return self

    @property
    def answer_tokens(self) -> Optional[int]:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def num_logprobs(self) -> Optional[int]:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Generation):
    """POST /v1/completions: a text that the model goes on with. No chat template, no media."""

    prompt: str = Field(min_length=1)
    logprobs: Optional[int] = Field(default=None, ge=0, le=5)

    @property
    def num_logprobs(self) -> Optional[int]:
        return self.logprobs
