"""Trains a small byte-level BPE in Qwen2.5's format, for tests and for examples that start without pretrained weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from mindspeed_vita.hf.token_layout import VISION_TOKENS

CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# How Qwen2 cuts text before BPE: contractions, words, single digits, punctuation with its line feeds, white space.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MODEL_MAX_LENGTH = 131072


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: str | Path) -> int:
    """Trains a tokenizer and writes vocab.json, merges.txt, tokenizer.json and tokenizer_config.json.

    The same texts give the same files. transformers 4.57 and 5 load the folder as a Qwen2 tokenizer.

    Args:
        texts: training text.
        vocab_size: entries at most, counting the 256 bytes, 3 chat tokens and 17 vision tokens. Little text gives fewer.
        folder: where to write; made if it does not exist.

    Returns:
        Entries of the tokenizer, added tokens included; a model needs at least this many rows.

    Raises:
        ValueError: vocab_size leaves no room for bytes and special tokens.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    added = (*CHAT_TOKENS, *VISION_TOKENS)
    smallest = 256 + len(added)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size={vocab_size} is too small: 256 bytes and {len(added)} special tokens need at least {smallest}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(added), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in added])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = _config({token: tokenizer.token_to_id(token) for token in added})
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return tokenizer.get_vocab_size()


def _config(added: dict[str, int | None]) -> dict[str, object]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(number): {"content": token, **flags} for token, number in added.items()},
        "additional_special_tokens": [token for token in added if token != "<|endoftext|>"],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": _MODEL_MAX_LENGTH,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
