"""One rank's pool of key-value blocks as tensors: allocated once, written by slot. Which block belongs to whom is not known here.

Shapes: B blocks, S tokens of a block, G key heads of this rank, D width of a head, T tokens.
"""

from __future__ import annotations

import torch


class KVCache:
    """Rotated keys and values of every layer.

    Args:
        num_layers: decoder layers.
        num_blocks: blocks of this rank.
        block_size: tokens of a block.
        kv_heads: key heads on this rank.
        head_dim: width of a head.
        dtype: of keys and values.
        device: where they are.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size, self.num_blocks = block_size, num_blocks
        # What no token was written to is never attended to. But a fused kernel reads whole tiles and multiplies the rest by zero, and zero
        # times NaN is NaN. On a CPU no such kernel is used, and memory that is not touched is not taken.
        make = torch.empty if device.type == "cpu" else torch.zeros
        self.tensor = make(num_layers, 2, num_blocks, block_size, kv_heads, head_dim, dtype=dtype, device=device)

    def layer(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, counted from 0: two views [B, S, G, D]."""
        return self.tensor[number, 0], self.tensor[number, 1]

    def write(self, number: int, slots_T: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor) -> None:
        """Puts keys and values of some tokens into a layer.

        Args:
            number: the layer, counted from 0.
            slots_T: int64, block * S + place in the block, of each token.
            k_TGD, v_TGD: rotated keys, and values.
        """
        stored_2TGD = self.tensor[number].flatten(1, 2)
        stored_2TGD[0].index_copy_(0, slots_T, k_TGD)
        stored_2TGD[1].index_copy_(0, slots_T, v_TGD)


def bytes_per_block(*, num_layers: int, block_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Memory of one block over all layers; arguments as in KVCache."""
    return num_layers * 2 * block_size * kv_heads * head_dim * dtype.itemsize


def blocks_in(budget: int, per_block: int) -> int:
    """Blocks that a budget of bytes holds.

    Raises:
        ValueError: not even one.
    """
    if budget < per_block:
        raise ValueError(f"the cache has {budget:,} bytes, one block takes {per_block:,}; give it more memory, or use a smaller block size")
    return budget // per_block
