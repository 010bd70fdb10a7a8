"""Floating-point operations of one call of an operator: torch's formulas, and our own for the CPU's flash attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

_FORWARD_PRODUCTS = 2
"""Matrix products of the attention kernel: scores, and the sum of values."""
_BACKWARD_PRODUCTS = 5
"""Scores again, and the gradients of values, probabilities, queries and keys."""

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

ATTENTION = (_FLASH, _FLASH_BACKWARD)
"""Operators whose work is attention. The others are matrix products and convolutions."""


def attended_pairs(num_queries: int, num_keys: int, causal: bool) -> int:
    """Query-key pairs that a kernel computes; causal: with the mask of the kernel, which starts at the top left."""
    if not causal:
        return num_queries * num_keys
    square = min(num_queries, num_keys)
    return square * (square + 1) // 2 + (num_queries - square) * num_keys


def flops(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    """Operations of one call: two for each multiply-add. 0 for operators without matrix products.

    Args:
        operator: overload that was called.
        args, kwargs: its arguments.
        result: what it returned.
    """
    packet = operator._overloadpacket
    if packet is _FLASH:
        causal = args[4] if len(args) > 4 else kwargs.get("is_causal", False)
        return _attention(args[0], args[1], bool(causal), _FORWARD_PRODUCTS)
    if packet is _FLASH_BACKWARD:
        causal = args[7] if len(args) > 7 else kwargs["is_causal"]
        return _attention(args[1], args[2], bool(causal), _BACKWARD_PRODUCTS)
    formula = flop_registry.get(packet)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))


def _attention(query_BNQD: torch.Tensor, key_BGSD: torch.Tensor, causal: bool, products: int) -> int:
    batch, heads, num_queries, width = query_BNQD.shape
    return 2 * products * batch * heads * width * attended_pairs(num_queries, key_BGSD.shape[2], causal)
