"""Responses have OpenAI's form: whole and streamed, with usage and log-probabilities."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from mindspeed_vita.inference.sampling import SampledToken
from mindspeed_vita.serving.errors import ApiError
from mindspeed_vita.serving.responses import DONE, Choice, Reply, Usage, event

WORDS = ["a", " cat", "é", "\N{REPLACEMENT CHARACTER}"]
USAGE = Usage(prompt_tokens=7, completion_tokens=3, cached_tokens=4)
TOKENS = (SampledToken(0, -0.5, ((0, -0.5), (1, -1.5))), SampledToken(2, -0.25, ((2, -0.25), (3, -math.inf))))


def reply(**settings: Any) -> Reply:
    return Reply(model="m", text_of=WORDS.__getitem__, created=5, key="k", **{"chat": True, **settings})


def test_a_whole_chat_answer():
    choices = [Choice(text="a cat", reason="stop"), Choice(text="a", reason="length")]
    assert reply().whole(choices, USAGE) == {
        "id": "chatcmpl-k",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "a cat", "refusal": None}, "logprobs": None, "finish_reason": "stop"},
            {"index": 1, "message": {"role": "assistant", "content": "a", "refusal": None}, "logprobs": None, "finish_reason": "length"},
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 4}},
    }


def test_a_stream_is_role_pieces_reason_and_usage():
    made = reply()
    chunks = [made.first(0), made.piece(0, "a"), made.piece(0, " cat"), made.last(0, "stop"), made.usage(USAGE)]
    for chunk in chunks:
        assert (chunk["id"], chunk["object"], chunk["created"], chunk["model"]) == ("chatcmpl-k", "chat.completion.chunk", 5, "m")
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "a"}, {"content": " cat"}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None, None, None, "stop"]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == USAGE.body()


def test_log_probabilities_of_a_chat():
    (choice,) = reply(logprobs=True).whole([Choice(text="aé", reason="stop", tokens=TOKENS)], USAGE)["choices"]
    first, second = choice["logprobs"]["content"]
    assert first == {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97]}, {"token": " cat", "logprob": -1.5, "bytes": list(b" cat")}],
    }
    assert second["bytes"] == list("é".encode())
    assert second["top_logprobs"][1] == {"token": WORDS[3], "logprob": -9999.0, "bytes": None}
    (streamed,) = reply(logprobs=True).piece(0, "aé", TOKENS)["choices"]
    assert streamed["logprobs"] == choice["logprobs"]


def test_completions_have_texts_and_offsets():
    made = reply(chat=False, logprobs=True)
    whole = made.whole([Choice(text="aé", reason="length", tokens=TOKENS)], USAGE)
    assert (whole["id"], whole["object"]) == ("cmpl-k", "text_completion")
    (choice,) = whole["choices"]
    assert choice["text"] == "aé" and choice["finish_reason"] == "length"
    assert choice["logprobs"] == {
        "tokens": ["a", "é"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"a": -0.5, " cat": -1.5}, {"é": -0.25, WORDS[3]: -9999.0}],
        "text_offset": [0, 1],
    }
    chunk = made.piece(1, "a")["choices"][0]
    assert (chunk["index"], chunk["text"], chunk["logprobs"]) == (1, "a", None)


@pytest.mark.parametrize("reason", ["cancelled", "error"])
def test_an_answer_that_the_server_ended_is_no_answer(reason: Any):
    with pytest.raises(ApiError) as caught:
        reply().whole([Choice(text="a", reason=reason)], USAGE)
    assert caught.value.status == 503


def test_events_are_one_line_of_json_each():
    sent = event(reply().piece(0, "two\nlines é\u2028"))
    assert sent.startswith(b"data: ") and sent.endswith(b"\n\n") and sent.count(b"\n") == 2
    assert json.loads(sent[6:])["choices"][0]["delta"]["content"] == "two\nlines é\u2028"
    assert DONE == b"data: [DONE]\n\n"


def test_every_reply_has_a_name_of_its_own():
    first, second = (Reply(model="m", chat=True, text_of=str) for _ in range(2))
    assert first.key != second.key and first.created > 0
