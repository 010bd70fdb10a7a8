"""Loads a Qwen2.5-style tokenizer folder, adds the Long-VITA vision tokens where they are missing, and fingerprints the result."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

from mindspeed_vita.config import language_names, language_traits
from mindspeed_vita.data.templates import ChatTemplate, check_template, get_template
from mindspeed_vita.hf.token_layout import NEWLINE_TOKENS, VISION_TOKENS, VisionTokenIds

_PROBE = "It's 2,718 small things:\n\n \tüber 你好 🎉 <|im_start|>user\n<image><video>"


def check_folder(folder: str | Path) -> Path:
    """The folder, if it looks like a tokenizer's; its files are not read.

    Raises:
        ValueError: no such folder, or no tokenizer in it.
    """
    if not str(folder):
        raise ValueError("data.tokenizer is empty; set it to a Qwen2.5 tokenizer folder")
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"tokenizer folder {str(folder)!r} does not exist; set data.tokenizer to a Qwen2.5 tokenizer folder")
    if not (folder / "tokenizer.json").is_file() and not ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ValueError(f"{folder} holds {held}; expected tokenizer.json, or vocab.json and merges.txt, of a Qwen2.5 tokenizer")
    return folder


class BareTokenizer:
    """As much of transformers' tokenizer as templates and measuring use, without transformers, whose import takes a second or more."""

    def __init__(self, backend: Any) -> None:
        self.backend_tokenizer = backend
        """A tokenizers.Tokenizer."""

    @classmethod
    def from_text(cls, text: str) -> BareTokenizer:
        """From what backend_tokenizer.to_str() gave, perhaps in another process."""
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_str(text))

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Added tokens by their ids."""
        return self.backend_tokenizer.get_added_tokens_decoder()

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def get_vocab(self) -> dict[str, int]:
        """Ids of all tokens."""
        return self.backend_tokenizer.get_vocab()

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """Id of a token; None where there is no such token."""
        return self.backend_tokenizer.token_to_id(token)


def _read_bare(file: Path) -> BareTokenizer:
    """What tokenizer.json holds, and the vision tokens that it lacks."""
    from tokenizers import AddedToken, Tokenizer

    tokenizer = BareTokenizer(Tokenizer.from_file(str(file)))
    held = tokenizer.get_vocab()
    missing = [AddedToken(token, normalized=False) for token in VISION_TOKENS if token not in held]
    tokenizer.backend_tokenizer.add_special_tokens(missing)
    return tokenizer


def check_tokenizer(folder: str | Path, template: str) -> Path:
    """The folder, if its tokenizer.json goes with a template; needs no torch. Without that file load_tokenizer tells.

    Raises:
        ValueError: no tokenizer there, no such template, or one that does not go with the other.
    """
    folder, chosen = check_folder(folder), get_template(template)
    file = folder / "tokenizer.json"
    if file.is_file():
        try:
            tokenizer = _read_bare(file)
        except Exception as error:
            raise ValueError(f"{file} does not load as a tokenizer ({error})") from error
        try:
            check_template(chosen, tokenizer)
        except ValueError as error:
            raise ValueError(f"the tokenizer in {folder}: {error}") from error
    return folder


def load_tokenizer(folder: str | Path, template: ChatTemplate | None = None) -> Any:
    """Loads a tokenizer folder; nothing is fetched from a network.

    Vision tokens that the vocabulary lacks are added at its end in released order: a plain Qwen2.5 folder gives ids
    151665 to 151681, as in the released checkpoints.

    Args:
        folder: tokenizer.json, or vocab.json and merges.txt, with tokenizer_config.json.
        template: chat template that it is for; None takes qwen2.

    Returns:
        A transformers tokenizer.

    Raises:
        ValueError: no such folder, no tokenizer in it, or one that does not go with the template.
    """
    folder = check_folder(folder)
    from transformers import AutoTokenizer

    try:
        with _known_config(folder):
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} does not load as a tokenizer ({error}); expected a Qwen2.5 tokenizer folder") from error
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ValueError(f"{folder} loads as {type(tokenizer).__name__} without a Rust backend; save it with tokenizer.json")
    vocabulary = tokenizer.get_vocab()  # a look-up by id would give missing tokens the id of the unknown token
    if not any(token in vocabulary for token in NEWLINE_TOKENS):
        raise ValueError(f"the tokenizer in {folder} lacks a token for the line feed; expected {' or '.join(NEWLINE_TOKENS)} in it")
    tokenizer.add_tokens([token for token in VISION_TOKENS if token not in vocabulary], special_tokens=True)
    template = template or get_template("qwen2")
    try:
        check_template(template, tokenizer)
    except ValueError as error:
        raise ValueError(f"the tokenizer in {folder}: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = template.pad_token
    return tokenizer


@contextmanager
def _known_config(folder: Path) -> Iterator[None]:
    """Makes transformers know a Long-VITA folder's configuration, so that it does not ask whether to run the code that travels with it.

    Only for a while: left there, it would stand for every later folder of that type, also one whose own code is of another version.
    """
    path = folder / "config.json"
    model_type = str(json.loads(path.read_text(encoding="utf-8")).get("model_type")) if path.is_file() else ""
    if not model_type.startswith("long_vita"):
        yield
        return
    from transformers import CONFIG_MAPPING, AutoConfig

    from mindspeed_vita.hf.configuration_long_vita import config_class

    before = dict(CONFIG_MAPPING._extra_content)
    for name in language_names():
        known = config_class(language_traits(name).hf_base)
        if known.model_type == model_type:
            AutoConfig.register(model_type, known, exist_ok=True)
    try:
        yield
    finally:
        CONFIG_MAPPING._extra_content.clear()
        CONFIG_MAPPING._extra_content.update(before)


def vision_token_ids(tokenizer: Any) -> VisionTokenIds:
    """Ids of the vision tokens.

    Raises:
        ValueError: the vocabulary lacks one.
    """
    return VisionTokenIds.from_lookup(tokenizer.get_vocab().get)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """sha256 over the vocabulary and over the ids of a probe text: equal for equal behaviour, whatever the files look like."""
    digest = hashlib.sha256()
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])):
        digest.update(f"{number}\t{token}\n".encode("utf-8", "surrogatepass"))
    digest.update(repr(tokenizer(_PROBE, add_special_tokens=False).input_ids).encode())
    return digest.hexdigest()
