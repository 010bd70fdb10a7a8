"""The models whose speed is measured, and the sizes that go with them: of Qwen2.5-1.5B, and tiny ones that a CPU runs in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of what is measured."""

    name: str
    model: dict[str, Any]
    """The recipe's section."""
    tokens: int
    """Of a pack."""
    head_rows: int
    """Rows of the head."""
    tiles: int
    """That the tower encodes at a time."""
    prompt: int
    """Words of a long prompt, which are about as many tokens."""
    answer: int
    """Tokens of an answer."""
    cache: int
    """Bytes of the cache."""


_QWEN = {
    "num_layers": 28,
    "hidden_size": 1536,
    "num_heads": 12,
    "num_kv_heads": 2,
    "ffn_hidden_size": 8960,
    "vocab_size": 151936,
    "rope_base": 1e6,
    "tie_embeddings": True,
    "max_positions": 32768,
}
SIZES = {
    "tiny": Size(
        name="tiny", model={"preset": "tiny"}, tokens=2048, head_rows=64, tiles=2, prompt=300, answer=4, cache=1 << 25
    ),
    "1.5b": Size(
        name="1.5b",
        model={"language": _QWEN},
        tokens=32768,
        head_rows=4096,  # an eighth of the pack is supervised
        tiles=32,
        prompt=16384,
        answer=64,
        cache=8 << 30,
    ),
}
