"""Token ids and labels of conversations: against the published ones with the real Qwen2.5 tokenizer, and spelled out with a small one."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from mindspeed_vita.data.assemble import Medium, encode_sample
from mindspeed_vita.data.batch import IGNORE
from mindspeed_vita.data.media.limits import MediaLimits
from mindspeed_vita.data.sample import Message, Sample
from mindspeed_vita.data.templates import get_template, template_names
from mindspeed_vita.data.tokenizer import load_tokenizer, vision_token_ids
from mindspeed_vita.hf.tiling import choose_grid
from mindspeed_vita.hf.token_layout import VISION_TOKENS

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "data" / "conversations.json").read_text())["conversations"]


@pytest.fixture(scope="module")
def qwen():
    folder = os.environ.get("VITA_TOKENIZER")
    if not folder:
        pytest.skip("set VITA_TOKENIZER to a Qwen2.5 tokenizer folder to compare real token ids")
    return load_tokenizer(folder)


def sha256(numbers) -> str:
    return hashlib.sha256(np.asarray(numbers, dtype="<i8").tobytes()).hexdigest()


def encode(sample, media, tokenizer, tokens_per_tile=256):
    limits = MediaLimits(
        tokens_per_tile=tokens_per_tile, tile_size=448, min_tiles=1, max_tiles=12, max_frames=8, max_fps=1, sampler="uniform"
    )
    return encode_sample(
        sample,
        media,
        tokenizer=tokenizer,
        template=get_template("qwen2"),
        ids=vision_token_ids(tokenizer),
        limits=limits,
        sample_id=0,
        source_id=0,
        source="s",
        root=".",
    )


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_token_ids_and_labels_equal_the_published_ones(case, qwen):
    messages = tuple(Message(turn["role"], turn["content"]) for turn in case["messages"])
    media = [Medium("p", choose_grid(*size), None, ()) for size in case["picture_sizes"]]
    encoded = encode(Sample(messages, ("p",) * len(media), ()), media, qwen)
    if "token_ids" in case:
        assert encoded.tokens_T.tolist() == case["token_ids"] and encoded.labels_T.tolist() == case["labels"]
    assert len(encoded.tokens_T) == case["num_tokens"] and int((encoded.labels_T != IGNORE).sum()) == case["supervised"]
    assert sha256(encoded.tokens_T) == case["token_ids_sha256"]
    assert sha256(encoded.labels_T) == case["labels_sha256"]


def test_a_plain_qwen_folder_gets_the_released_ids(qwen):
    assert qwen.convert_tokens_to_ids(list(VISION_TOKENS)) == list(range(151665, 151682))


def test_content_is_tokenised_apart_from_its_header(tokenizer):
    ids, supervised = get_template("qwen2").encode([Message("user", "\nA"), Message("assistant", "\nB")], tokenizer)
    line_feed, start, end = (tokenizer.convert_tokens_to_ids(token) for token in ("Ċ", "<|im_start|>", "<|im_end|>"))
    user, assistant, a, b = (tokenizer(text, add_special_tokens=False).input_ids for text in ("user", "assistant", "A", "B"))
    question = [start, *user, line_feed, line_feed, *a, end, line_feed]
    assert ids == [*question, start, *assistant, line_feed, line_feed, *b, end, line_feed]
    learnt = 1 + len(b) + 2
    assert supervised == [False] * (len(ids) - learnt) + [True] * learnt, "the line feed that the answer starts with is learnt"


def test_no_system_prompt_unless_the_sample_has_one(tokenizer):
    with_system, _ = get_template("qwen2").encode([Message("system", "Be brief."), Message("user", "A")], tokenizer)
    without, _ = get_template("qwen2").encode([Message("user", "A")], tokenizer)
    assert with_system[-len(without) :] == without and "system" not in tokenizer.decode(without)


def test_media_in_an_answer_are_never_supervised(tokenizer):
    sample = Sample((Message("user", "Draw."), Message("assistant", "Here <image> done.")), ("p",), ())
    encoded = encode(sample, [Medium("p", (2, 1), None, ())], tokenizer, tokens_per_tile=4)
    vision = [tokenizer.convert_tokens_to_ids(token) for token in VISION_TOKENS[:9]]
    assert not np.isin(encoded.labels_T, vision).any()
    last = int(np.flatnonzero(np.isin(encoded.tokens_T, vision)).max())
    assert encoded.labels_T[last] == encoded.tokens_T[last + 1], "the first word after the picture is learnt"


def test_the_registry_lists_its_names():
    assert template_names() == ("qwen2", "llama3", "mistral", "vicuna") and get_template("qwen2").name == "qwen2"
