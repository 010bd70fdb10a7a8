"""A tokenizer whose long texts do not keep the other threads of the process waiting."""

from __future__ import annotations

from typing import Any


class FreeTokenizer:
    """A tokenizer of transformers as templates use it, with the same tokens.

    The Rust tokenizer's `encode` holds Python's lock until it ends, which takes seconds for millions of characters. `encode_batch` lets go
    of it. Training does not use this: there each process has one thread, and a batch may start threads of its own.

    Args:
        tokenizer: of transformers, with a Rust backend.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.backend_tokenizer = _FreeBackend(tokenizer.backend_tokenizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


class _FreeBackend:
    """A tokenizers.Tokenizer with another `encode`."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        """The encoding of one text."""
        (encoding,) = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)
        return encoding
