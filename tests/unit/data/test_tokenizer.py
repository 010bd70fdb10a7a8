"""Tokenizer folders: the small one that tests and examples train, and what is said about folders that will not do."""

import json

import pytest

from mindspeed_vita.data.tiny_tokenizer import CHAT_TOKENS, train_tokenizer
from mindspeed_vita.data.tokenizer import BareTokenizer, load_tokenizer, tokenizer_fingerprint, vision_token_ids
from mindspeed_vita.hf.token_layout import VISION_TOKENS, ReservedText

FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")


def test_training_is_deterministic_and_writes_qwen_files(tmp_path):
    texts = ["The same words give the same merges. 42!\n"] * 5
    sizes = [train_tokenizer(texts, 300, tmp_path / name) for name in "ab"]
    assert sizes[0] == sizes[1] <= 300
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_special_tokens_come_last_in_released_order_and_never_split(tokenizer):
    added = tokenizer.convert_tokens_to_ids([*CHAT_TOKENS, *VISION_TOKENS])
    assert added == list(range(len(tokenizer) - 20, len(tokenizer)))
    text = "a<image>b\n<video><|im_end|>"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert set(tokenizer.convert_tokens_to_ids(["<image>", "<video>", "<|im_end|>"])) <= set(ids)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert vision_token_ids(tokenizer).newline == tuple(tokenizer("\n", add_special_tokens=False).input_ids)


def test_any_text_survives(tokenizer):
    text = "Ünïcode 你好 🎉 don't 12345 \t\n\n x  y\r\n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids, clean_up_tokenization_spaces=False) == text


def test_digits_are_single_tokens_as_in_qwen(tokenizer):
    assert len(tokenizer("2025", add_special_tokens=False).input_ids) == 4


def test_too_small_a_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match="vocab_size=200 is too small.*need at least 276"):
        train_tokenizer(["x"], 200, tmp_path)


def strip_tokens(folder, target, tokens):
    """Copies a tokenizer folder without some added tokens."""
    target.mkdir()
    for name in FILES:
        (target / name).write_bytes((folder / name).read_bytes())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        if name == "tokenizer.json":
            content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in tokens]
        else:
            kept = {key: value for key, value in content["added_tokens_decoder"].items() if value["content"] not in tokens}
            content["added_tokens_decoder"] = kept
            content["additional_special_tokens"] = [token for token in content["additional_special_tokens"] if token not in tokens]
            content["eos_token"] = "<|endoftext|>"
        (target / name).write_text(json.dumps(content))
    return target


def test_missing_vision_tokens_are_added_at_the_end(tokenizer_folder, tokenizer, tmp_path):
    plain = load_tokenizer(strip_tokens(tokenizer_folder, tmp_path / "plain", VISION_TOKENS))
    assert plain.convert_tokens_to_ids(list(VISION_TOKENS)) == tokenizer.convert_tokens_to_ids(list(VISION_TOKENS))
    assert tokenizer_fingerprint(plain) == tokenizer_fingerprint(tokenizer)


def test_a_tokenizer_without_the_chat_tokens_is_refused(tokenizer_folder, tmp_path):
    folder = strip_tokens(tokenizer_folder, tmp_path / "bare", ("<|im_start|>", "<|im_end|>"))
    with pytest.raises(ValueError, match=r"bare: data.template='qwen2' needs <\|im_start\|>, <\|im_end\|>, which the tokenizer lacks"):
        load_tokenizer(folder)


def with_unknown_token(folder):
    """The folder with a token that stands for every unknown one, as many families have."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "unk_token": "<|endoftext|>"}))
    return folder


def test_an_unknown_token_stands_for_no_special_token(tokenizer_folder, tmp_path):
    bare = with_unknown_token(strip_tokens(tokenizer_folder, tmp_path / "bare", ("<|im_start|>", "<|im_end|>")))
    with pytest.raises(ValueError, match=r"bare: data.template='qwen2' needs <\|im_start\|>, <\|im_end\|>, which the tokenizer lacks"):
        load_tokenizer(bare)
    from transformers import AutoTokenizer

    plain = with_unknown_token(strip_tokens(tokenizer_folder, tmp_path / "plain", VISION_TOKENS[1:3]))
    unfilled = AutoTokenizer.from_pretrained(str(plain))
    assert unfilled.convert_tokens_to_ids("</img>") == unfilled.unk_token_id, "what makes the lookup by id a trap"
    with pytest.raises(ValueError, match="lacks </img>, <IMG_CONTEXT>; expected the Long-VITA vision tokens"):
        vision_token_ids(unfilled)
    filled = load_tokenizer(plain)
    assert filled.unk_token_id not in filled.convert_tokens_to_ids(list(VISION_TOKENS))


def test_folders_that_hold_no_tokenizer_are_refused(tmp_path):
    with pytest.raises(ValueError, match="gone' does not exist; set data.tokenizer"):
        load_tokenizer(tmp_path / "gone")
    (tmp_path / "x.txt").touch()
    with pytest.raises(ValueError, match=r"holds x.txt; expected tokenizer.json, or vocab.json and merges.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(ValueError, match="does not load as a tokenizer"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_transformers_is_the_same_to_whoever_measures(tokenizer):
    bare = BareTokenizer.from_text(tokenizer.backend_tokenizer.to_str())
    assert len(bare) == len(tokenizer) and bare.get_vocab() == tokenizer.get_vocab()
    assert vision_token_ids(bare) == vision_token_ids(tokenizer)
    assert bare.convert_tokens_to_ids("<image>") == tokenizer.convert_tokens_to_ids("<image>")
    assert ReservedText(bare)._pattern == ReservedText(tokenizer)._pattern
    text = "It's 2,718 <image>\n\n<|im_end|> \tüber 你好 🎉"
    assert bare.backend_tokenizer.encode(text, add_special_tokens=False).ids == tokenizer(text, add_special_tokens=False).input_ids
