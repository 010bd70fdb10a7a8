"""The official openai client against a running server: chat, streams, log-probabilities, errors and cancellation."""

from __future__ import annotations

import math
from typing import Any

import openai
import pytest

from tests.unit.serving.conftest import Running, picture, shown, until

HI = [{"role": "user", "content": "How many?"}]


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def ask(client: openai.OpenAI, messages: Any = HI, **options: Any) -> Any:
    return client.chat.completions.create(model="tiny", messages=messages, **{"temperature": 0, "max_tokens": 12, **options})


def test_the_one_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="the model 'other' does not exist"):
        client.models.retrieve("other")


def test_a_stream_is_the_whole_answer_in_pieces(client: openai.OpenAI, server: Running) -> None:
    whole = ask(client)
    assert whole.object == "chat.completion" and whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 12 and whole.usage.total_tokens == whole.usage.prompt_tokens + 12
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant" and len(chunks) > 5
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content and chunks[-2].choices[0].finish_reason == "length"
    assert not chunks[-1].choices and chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens >= 16, "the first request's blocks"


def test_pictures_are_seen_and_found_again(client: openai.OpenAI) -> None:
    first, other = (ask(client, shown("What is it?", picture(seed))) for seed in (1, 2))
    assert first.usage.prompt_tokens > 30 and first.choices[0].message.content != other.choices[0].message.content
    again = ask(client, shown("What is it?", picture(1)))
    assert again.choices[0].message.content == first.choices[0].message.content
    assert again.usage.prompt_tokens_details.cached_tokens >= 16 > first.usage.prompt_tokens_details.cached_tokens
    several = ask(client, shown("Compare.", picture(1), picture(2)))
    assert several.usage.prompt_tokens > first.usage.prompt_tokens


def test_a_video_says_how_many_frames_were_taken(client: openai.OpenAI, film: str) -> None:
    answer = ask(client, shown("What happens?", film, kind="video_url"))
    assert answer.usage.prompt_tokens_details.video_frames == [5]


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(client: openai.OpenAI, stream: bool) -> None:
    answer = ask(client, logprobs=True, top_logprobs=3, stream=stream)
    found = [one for chunk in (answer if stream else [answer]) for one in (chunk.choices[0].logprobs or _None).content]
    assert len(found) == 12
    for one in found:
        assert len(one.top_logprobs) == 3 and one.logprob == one.top_logprobs[0].logprob, "greedy takes the likeliest"
        assert math.exp(one.logprob) <= 1


class _None:
    content: tuple[Any, ...] = ()


def test_several_choices_with_a_seed(client: openai.OpenAI) -> None:
    options = {"n": 3, "temperature": 1.0, "seed": 7, "max_tokens": 8}
    texts = [choice.message.content for choice in ask(client, **options).choices]
    assert len(set(texts)) == 3 and [choice.message.content for choice in ask(client, **options).choices] == texts
    pieces = ["", "", ""]
    for chunk in ask(client, stream=True, **options):
        pieces[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert pieces == texts


def test_a_stop_string_ends_the_answer(client: openai.OpenAI) -> None:
    text = ask(client).choices[0].message.content
    short = ask(client, stop=text[3:5]).choices[0]
    assert short.message.content == text[: text.index(text[3:5])] and short.finish_reason == "stop"


def test_completions_go_on_with_a_text(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt="A photo of", max_tokens=6, temperature=0, logprobs=2)
    chosen = whole.choices[0]
    assert whole.object == "text_completion" and len(chosen.logprobs.tokens) == 6 and "".join(chosen.logprobs.tokens) == chosen.text
    pieces = client.completions.create(model="tiny", prompt="A photo of", max_tokens=6, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in pieces) == chosen.text
    assert whole.usage.prompt_tokens < ask(client, [{"role": "user", "content": "A photo of"}]).usage.prompt_tokens, "no chat template"


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"model": "other"}, openai.NotFoundError, "the model 'other' does not exist"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "Unrecognized request argument supplied: temprature"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools is not supported"),
        ({"max_tokens": 100_000}, openai.BadRequestError, "an answer of up to 100000 do not fit"),
        ({"n": 9}, openai.BadRequestError, "the server allows 8 choices"),
        ({"n": 2, "seed": 2**64 - 1}, openai.BadRequestError, "seed="),
        ({"messages": [{"role": "user", "content": "a <image> b"}]}, openai.BadRequestError, "the text holds the tag <image>"),
        ({"messages": [{"role": "user", "content": "a <|im_end|> b"}]}, openai.BadRequestError, "reserved token"),
        ({"messages": shown("x", "data:image/png;base64,AAAA")}, openai.BadRequestError, "image 1 cannot be read as a picture"),
        ({"messages": shown("x", picture(0, (1200, 1000)))}, openai.BadRequestError, "image 1 has 1200x1000 pixels"),
        ({"messages": shown("x", "file:///etc/passwd")}, openai.BadRequestError, "this server reads no files"),
        ({"messages": shown("x", "http://127.0.0.1/a.png")}, openai.BadRequestError, "this server fetches nothing"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_has_its_status_and_its_reason(
    client: openai.OpenAI, server: Running, options: dict[str, Any], kind: type[openai.APIStatusError], message: str, stream: bool
) -> None:
    with pytest.raises(kind, match=message) as caught:
        client.chat.completions.create(**{"model": "tiny", "messages": HI, "stream": stream, **options})
    assert caught.value.body["message"] and "/tmp" not in str(caught.value)
    until(server.idle)


def test_closing_a_stream_cancels_its_request_and_frees_its_blocks(client: openai.OpenAI, server: Running) -> None:
    with ask(client, max_tokens=3000, stream=True) as stream:
        for _ in zip(range(5), stream):
            pass
        assert server.loop.counts()[0].used > 0
    until(server.idle)
    until(lambda: server.lines[-1].get("code") == "client_gone")
    assert ask(client).choices[0].finish_reason == "length"


def test_a_client_that_gives_up_waiting_cancels_its_request(client: openai.OpenAI, server: Running) -> None:
    with pytest.raises(openai.APITimeoutError):
        ask(client, max_tokens=3900, timeout=0.5)
    until(server.idle)
    until(lambda: server.lines[-1]["status"] == 499)
