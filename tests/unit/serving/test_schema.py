"""OpenAI requests: what is taken, what is refused with which words, and what sampling follows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from mindspeed_vita.inference.sampling import SamplingParams
from mindspeed_vita.serving.errors import ApiError, from_validation
from mindspeed_vita.serving.schema import ChatRequest, CompletionRequest, ImagePart, TextPart

HI = {"role": "user", "content": "hi"}


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": [HI], **fields})


def refused(model: Any = ChatRequest, **fields: Any) -> dict[str, Any]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(fields if "messages" in fields or model is CompletionRequest else {"messages": [HI], **fields})
    error = from_validation(caught.value)
    assert error.status == 400
    return error.body()["error"]


def test_nothing_but_messages_samples_as_openai_does():
    assert chat().sampling() == SamplingParams(temperature=1.0)


def test_every_field_reaches_sampling():
    asked = chat(
        model="long-vita",
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        stop=["a", "b"],
        n=2,
        presence_penalty=0.1,
        frequency_penalty=-0.1,
        logprobs=True,
        top_logprobs=4,
        stream=True,
        stream_options={"include_usage": True},
        top_k=5,
        min_p=0.1,
        repetition_penalty=1.1,
        min_tokens=2,
    )
    expected = SamplingParams(
        temperature=0.5,
        top_k=5,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.1,
        frequency_penalty=-0.1,
        seed=3,
        max_tokens=7,
        min_tokens=2,
        stop=("a", "b"),
        logprobs=4,
    )
    assert asked.sampling() == expected
    assert asked.sampling(choice=1) == replace(expected, seed=4)


def test_small_differences_between_clients_are_taken():
    assert chat(stop="end").sampling().stop == ("end",)
    assert chat(max_tokens=5).answer_tokens == 5 == chat(max_tokens=5, max_completion_tokens=5).answer_tokens
    assert chat(temperature=1).temperature == 1.0 and chat(top_k=-1).sampling().top_k == 0
    assert chat(temperature=None, stop=None, tools=None, n=None).sampling() == chat().sampling()
    assert chat(logprobs=True).num_logprobs == 0
    assert chat(user="me", metadata={"a": "b"}, tools=[], tool_choice="auto", response_format={"type": "text"}) == chat()


def test_parts_of_a_message_keep_their_order():
    parts = [{"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}}, {"type": "text", "text": "What?"}]
    content = chat(messages=[{"role": "user", "content": parts}]).messages[0].content
    assert [type(part) for part in content] == [ImagePart, TextPart]


@pytest.mark.parametrize(
    "fields, param, message",
    [
        ({"colour": 1}, "colour", "Unrecognized request argument supplied: colour"),
        ({"tools": [{"type": "function"}]}, None, "tools is not supported by this server; leave it out"),
        ({"response_format": {"type": "json_object"}}, None, "response_format is not supported"),
        ({"temperature": 3}, "temperature", "temperature: Input should be less than or equal to 2"),
        ({"temperature": "0"}, "temperature", "temperature: Input should be a valid number"),
        ({"temperature": 0.001}, None, "temperature=0.001; expected 0"),
        ({"n": 0}, "n", "n: "),
        ({"n": True}, "n", "n: Input should be a valid integer"),
        ({"stream_options": {"include_usage": True}}, None, "only allowed with stream=true"),
        ({"top_logprobs": 2}, None, "only allowed with logprobs=true"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, None, "max_tokens=3 and max_completion_tokens=4 differ"),
        ({"stop": [""]}, None, "none of them empty"),
        ({"messages": []}, "messages", "messages: "),
        ({"messages": None}, "messages", "messages: Input should be a valid list"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "'system', 'developer', 'user' or 'assistant'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "messages.0.content: "),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text", "Field required"),
        ({"messages": [{"role": "user", "content": [{"type": "sound"}]}]}, "messages.0.content.0", "sound"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]}]},
            "messages.0.content.0.image_url.url",
            "valid string",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "cat.jpg"}]}]},
            "messages.0.content.0.image_url",
            'found a text; expected {"type": "image_url", "image_url": {"url": "..."}}',
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": "clip.mp4"}]}]},
            "messages.0.content.0.video_url",
            'found a text; expected {"type": "video_url", "video_url": {"url": "..."}}',
        ),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages.0.colour", "Unrecognized request argument"),
        ({"messages": [HI, {"role": "assistant", "content": "ho"}]}, None, "the last message is the assistant's"),
    ],
)
def test_faults_are_named_with_their_field(fields: dict[str, Any], param: str | None, message: str):
    found = refused(**fields)
    assert message in found["message"] and found["param"] == param and found["type"] == "invalid_request_error"


def test_completions_take_a_text_only():
    asked = CompletionRequest.model_validate({"prompt": "Once", "logprobs": 2, "max_tokens": 4, "best_of": 1, "echo": False})
    assert asked.sampling() == SamplingParams(temperature=1.0, max_tokens=4, logprobs=2)
    assert refused(CompletionRequest, prompt=["a", "b"])["param"] == "prompt"
    assert refused(CompletionRequest, prompt="")["param"] == "prompt"
    assert "echo is not supported" in refused(CompletionRequest, prompt="a", echo=True)["message"]


def test_what_is_no_object_is_a_fault_of_its_own():
    for body in ([], "text", None, 3):
        with pytest.raises(ValidationError) as caught:
            ChatRequest.model_validate(body)
        assert from_validation(caught.value).body()["error"]["param"] is None


def test_errors_have_openais_form():
    error = ApiError(429, "full", code="queue_full", retry_after=2)
    assert error.body() == {"error": {"message": "full", "type": "rate_limit_error", "param": None, "code": "queue_full"}}
