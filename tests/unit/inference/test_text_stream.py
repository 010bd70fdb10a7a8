"""Streams of text: the pieces make the decoded whole, no piece ends in half a character, and nothing of a stop string is shown."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindspeed_vita.data.tiny_tokenizer import train_tokenizer
from mindspeed_vita.data.tokenizer import load_tokenizer
from mindspeed_vita.inference.text_stream import Detokenizer, StopStrings, TextStream

TEXTS = ["a cat sat on the mat, and the dog did not.", "你好,世界 🎉", "über Maß"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tiny_tokenizer")
    train_tokenizer(TEXTS, 300, folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def real() -> Any:
    folder = os.environ.get("VITA_TOKENIZER")
    if not folder:
        pytest.skip("set VITA_TOKENIZER to a Qwen2.5 tokenizer folder to stream its tokens")
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def sentencepiece() -> Any:
    """A small vocabulary with byte fallback and without a space before the first word, as vicuna's and mistral's."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "▁the", "cat", "t", "▁▁", "."]
    backend = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>"))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


@pytest.fixture
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def decode(tokenizer: Any, ids: list[int], skip: bool = True) -> str:
    return tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)


def pieces_of(tokenizer: Any, ids: list[int], skip: bool = True) -> list[str]:
    stream = Detokenizer(tokenizer, skip_special_tokens=skip)
    return [*map(stream.push, ids), stream.finish()]


# mostly the low ids: single bytes, and in the sentencepiece one nearly everything
def ids_of(tokenizer: Any) -> st.SearchStrategy[list[int]]:
    low, special = st.integers(0, 260), st.sampled_from(tokenizer.all_special_ids)
    return st.lists(st.one_of(low, st.integers(0, len(tokenizer) - 1), special), max_size=24)


@pytest.mark.parametrize("tokenizer", ["tiny", "real", "sentencepiece"], indirect=True)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), skip=st.booleans())
def test_pieces_of_any_tokens_make_the_decoded_whole(tokenizer: Any, data: st.DataObject, skip: bool):
    ids = data.draw(ids_of(tokenizer))
    assert "".join(pieces_of(tokenizer, ids, skip)) == decode(tokenizer, ids, skip)


@pytest.mark.parametrize("tokenizer", ["tiny", "real"], indirect=True)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cn"], exclude_characters="\N{REPLACEMENT CHARACTER}"), max_size=20))
def test_pieces_of_a_text_hold_whole_characters_as_soon_as_they_are_whole(tokenizer: Any, text: str):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    whole, shown = decode(tokenizer, ids), ""
    for count, piece in enumerate(pieces_of(tokenizer, ids), start=1):
        assert "\N{REPLACEMENT CHARACTER}" not in piece
        shown += piece
        so_far = decode(tokenizer, ids[:count])
        assert shown == so_far or so_far.endswith("\N{REPLACEMENT CHARACTER}")
    assert shown == whole


def test_a_character_of_several_tokens_comes_whole(tiny: Any):
    ids = [token for byte in "é🎉".encode() for token in tiny.convert_tokens_to_ids([bytes_to_token(byte)])]
    assert len(ids) == 6
    assert pieces_of(tiny, ids) == ["", "é", "", "", "", "🎉", ""]


def bytes_to_token(byte: int) -> str:
    """How a byte-level vocabulary writes a byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [number for number in range(256) if number not in printable]
    return chr(byte) if byte in printable else chr(256 + hidden.index(byte))


def test_a_character_that_stays_incomplete_comes_at_the_end_as_in_the_whole(tiny: Any):
    ids = tiny.convert_tokens_to_ids([*map(bytes_to_token, b"a" + "🎉".encode()[:3])])
    assert pieces_of(tiny, ids) == ["a", "", "", "", "\N{REPLACEMENT CHARACTER}"]


def test_special_tokens_are_left_out_or_shown(tiny: Any):
    ids = [*tiny("a cat", add_special_tokens=False).input_ids, tiny.convert_tokens_to_ids("<|im_end|>")]
    assert "".join(pieces_of(tiny, ids)) == "a cat"
    assert "".join(pieces_of(tiny, ids, skip=False)) == "a cat<|im_end|>"


def test_added_tokens_that_are_not_special_are_text(real: Any):
    number = real.convert_tokens_to_ids("<tool_call>")
    if number is None or number in real.all_special_ids:
        pytest.skip("this tokenizer has no <tool_call> that is text")
    assert pieces_of(real, [number]) == ["<tool_call>", ""]


def test_a_run_of_byte_tokens_waits_for_its_end(sentencepiece: Any):
    """An invalid byte changes what the bytes before it are decoded to, so none of them is certain before."""
    ids = sentencepiece.convert_tokens_to_ids(["▁a", "<0x41>", "<0xFF>", "cat"])
    assert decode(sentencepiece, ids) == "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}cat"
    assert pieces_of(sentencepiece, ids)[:3] == ["a", "", ""]


# Stop strings


def plainly(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The shown text and the stop string met, looking at one more character at a time."""
    for end in range(1, len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            longest = max(met, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(st.text("ab", max_size=4), max_size=8),
    stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
)
def test_nothing_of_a_stop_string_is_shown_however_the_text_is_cut(pieces: list[str], stops: list[str]):
    finder, text, shown = StopStrings(stops), "".join(pieces), ""
    expected, met = plainly(text, stops)
    for piece in pieces:
        shown += finder.push(piece)
        assert expected.startswith(shown)
    shown += finder.finish()
    assert (shown, finder.met) == (expected, met)


def test_only_what_may_begin_a_stop_string_is_held_back():
    finder = StopStrings(["STOP", "\n\n"])
    pieces = ("one ", "S", "T", "A", "two\n", "three", "\n")
    assert [finder.push(piece) for piece in pieces] == ["one ", "", "", "STA", "two", "\nthree", ""]
    assert finder.push("\n") == "" and finder.met == "\n\n"
    assert finder.push("more") == "" and finder.finish() == ""


@pytest.mark.parametrize("tokenizer", ["tiny", "real"], indirect=True)
def test_a_stop_string_across_tokens_ends_the_text(tokenizer: Any):
    stream = TextStream(tokenizer, ["the dog", "never"])
    ids = tokenizer("a cat sat on the mat, and the dog did not.", add_special_tokens=False).input_ids
    shown = ""
    for token in ids:
        shown += stream.push(token)
        assert "the mat, and the dog".startswith(shown.removeprefix("a cat sat on ")) or "a cat sat on ".startswith(shown)
        if stream.stopped_by:
            break
    assert stream.stopped_by == "the dog"
    assert shown == stream.text == "a cat sat on the mat, and "


def test_what_was_held_back_comes_when_the_answer_ends_otherwise(tiny: Any):
    stream = TextStream(tiny, ["the dog"])
    ids = tiny("a cat, the do", add_special_tokens=False).input_ids
    shown = "".join(map(stream.push, ids))
    assert shown == "a cat, "
    assert stream.finish() == "the do" and stream.stopped_by is None and stream.text == "a cat, the do"


def test_stop_strings_are_looked_for_only_after_min_tokens(tiny: Any):
    ids = tiny("a a a a a", add_special_tokens=False).input_ids
    stream = TextStream(tiny, ["a"], min_tokens=len(ids) - 1)
    shown = "".join(map(stream.push, ids))
    assert stream.stopped_by == "a" and shown == decode(tiny, ids[:-1]) + decode(tiny, ids[-1:]).removesuffix("a")


def test_the_end_of_a_half_character_may_complete_a_stop_string(tiny: Any):
    stream = TextStream(tiny, ["x\N{REPLACEMENT CHARACTER}"])
    ids = tiny.convert_tokens_to_ids([*map(bytes_to_token, b"ax" + "🎉".encode()[:2])])
    assert [stream.push(token) for token in ids] == ["a", "", "", ""]
    assert stream.finish() == "" and stream.stopped_by == "x\N{REPLACEMENT CHARACTER}"
