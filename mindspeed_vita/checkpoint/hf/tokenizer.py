"""Tokenizer files of a Hugging Face folder, in the style that transformers 4.57 and 5 both load (4.57 cannot read what 5 saves)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.config import language_traits
from mindspeed_vita.config.languages import RELEASED
from mindspeed_vita.data.templates import get_template
from mindspeed_vita.files.writing import write_bytes

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json")
_FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


def write_tokenizer(tokenizer: Any, folder: Path, template: str = "qwen2", changes: Optional[Mapping[str, Any]] = None) -> None:
    """Write tokenizer.json, vocab.json, merges.txt, added_tokens.json, special_tokens_map.json and tokenizer_config.json.

    Args:
        tokenizer: a fast tokenizer with the vision tokens added.
        folder: exists already.
        template: name of the chat template; only qwen2's tokenizers are written as transformers' Qwen2Tokenizer.
        changes: keys of tokenizer_config.json that differ from those of a Long-VITA folder; None leaves a key out.

    Raises:
        ValueError: not a BPE tokenizer.
    """
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    if whole["model"].get("type") != "BPE":
        raise ValueError(f"the tokenizer is a {whole['model'].get('type')} model; expected BPE, as Qwen2.5 has")
    # A call with padding leaves its settings behind in the backend.
    whole["padding"] = whole["truncation"] = None
    added = sorted(whole["added_tokens"], key=lambda token: token["id"])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in whole["model"]["merges"]]
    write_json(folder / "tokenizer.json", whole)
    write_json(folder / "vocab.json", whole["model"]["vocab"])
    write_bytes(folder / "merges.txt", ("#version: 0.2\n" + "".join(merge + "\n" for merge in merges)).encode())
    write_json(folder / "added_tokens.json", {token["content"]: token["id"] for token in added})
    special = {"eos_token": tokenizer.eos_token, "pad_token": tokenizer.pad_token}
    extra = [token["content"] for token in added if token["special"] and token["content"] != tokenizer.pad_token]
    write_json(folder / "special_tokens_map.json", {"additional_special_tokens": extra, **special})
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(token["id"]): {name: token[name] for name in _FLAGS} for token in added},
        "additional_special_tokens": extra,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": tokenizer.model_max_length,
        "padding_side": "left",
        "processor_class": "LongVitaProcessor",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer" if template == "qwen2" else "PreTrainedTokenizerFast",
        "unk_token": None,
        **special,
    }
    left_out = {key for key, value in (changes or {}).items() if value is None}
    config = {key: value for key, value in {**config, **(changes or {})}.items() if key not in left_out}
    write_json(folder / "tokenizer_config.json", config)


def stop_ids(tokenizer: Any, template: str, family: str = RELEASED) -> tuple[int, ...]:
    """What ends an answer: the token that ends it in training (qwen2: <|im_end|>, whatever the tokenizer calls its eos token), padding,
    and the decoder family's own stop tokens, as far as the tokenizer has them."""
    own = [token for token in language_traits(family).stop_tokens if token in tokenizer.get_vocab()]
    ids = [tokenizer.convert_tokens_to_ids(get_template(template).stop_token), tokenizer.pad_token_id]
    return tuple(dict.fromkeys((*ids, *tokenizer.convert_tokens_to_ids(own)))) if own else tuple(ids)


def write_json(path: Path, content: Any) -> None:
    """Indented JSON with a final line feed."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
