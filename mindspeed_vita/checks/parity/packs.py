"""Packs that meet every hard spot of a parallel layout: uneven and one-token documents, tiles over chunk seams, a pack without pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mindspeed_vita import sharding
from mindspeed_vita.config import ModelConfig, model_config_from_dict
from mindspeed_vita.data.batch import PackedBatch
from mindspeed_vita.data.positions import document_positions
from mindspeed_vita.parallel.layout import ParallelLayout

SEQ_LENGTH = 96
CONTEXT_TOKEN = 7

MODEL: dict[str, Any] = {
    "preset": "tiny",
    "vision": {
        "tile_size": 56, "patch_size": 14, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "ffn_hidden_size": 64,
        "layer_scale_init": 0.5,
    },
    "projector": {"hidden_size": 48},
    "language": {
        "num_layers": 4, "hidden_size": 64, "num_heads": 4, "num_kv_heads": 2, "ffn_hidden_size": 96, "vocab_size": 128,
        "max_positions": 256,
    },
    "init_std": 0.2,
    "lm_head_chunk": 16,
}  # fmt: skip
"""Small enough for a second a case, and divisible by tp 2, pp 2 and cp 4. Large weights, so that a lost term shows."""

# document bounds and first tokens of tiles (4 tokens each); seams are at every 12 tokens for cp 4 and at every 24 for cp 2
_LAYOUTS: list[tuple[list[int], list[int]]] = [
    ([0, 37, 38, 80, 91, 96], [1, 10, 24, 40, 47, 52, 70]),  # swapped chunks, tiles over seams, a one-token document
    ([0, 13, 60, 96], []),  # swapped chunks, long padding
    ([0, 96, 96], [9, 22, 33, 46, 58, 70, 82]),  # one document without padding: a zigzag, tiles over each of its seams
    ([0, 96], [92]),  # nothing but padding, and one tile
]
"""What each pack is hard for; tests/unit/checks/parity/test_packs.py checks the plans. The last document is padding, maybe empty."""


def model_config() -> ModelConfig:
    """The model that the packs fit."""
    return model_config_from_dict(MODEL)


def make_pack(number: int, resets: bool, layout: ParallelLayout) -> PackedBatch:
    """Pack number 0..3 as the given rank receives it."""
    bounds, first = _LAYOUTS[number]
    generator = torch.Generator().manual_seed(100 + number)
    tokens = torch.randint(8, 128, (SEQ_LENGTH,), generator=generator)
    vision = np.zeros(SEQ_LENGTH, dtype=bool)
    for start in first:
        vision[start : start + 4] = True
    tokens[vision] = CONTEXT_TOKEN
    labels = torch.full((SEQ_LENGTH,), -100)
    for start, stop in zip(bounds[:-2], bounds[1:-1]):
        labels[start : stop - 1] = tokens[start + 1 : stop]
    supervised = torch.rand(SEQ_LENGTH, generator=generator) < 0.4
    labels[~supervised | (labels == CONTEXT_TOKEN)] = -100
    cu_seqlens = torch.tensor(bounds if resets else [0, bounds[-2], SEQ_LENGTH]).unique()
    tiles = torch.randint(0, 256, (len(first), 3, 56, 56), generator=generator, dtype=torch.uint8)
    owned = sharding.tile_owner(len(first), layout.tile_group_size)[layout.tile_rank]
    num_samples = len(bounds) - 2
    return PackedBatch(
        tokens_T=tokens,
        labels_T=labels,
        weights_T=(labels != -100).float(),
        positions_T=torch.from_numpy(document_positions(cu_seqlens.numpy())),
        cu_seqlens=cu_seqlens,
        sample_cu=torch.tensor(bounds[:-1]),
        sample_ids=torch.arange(num_samples),
        source_ids=torch.zeros(num_samples, dtype=torch.int64),
        tile_first_token=torch.tensor(first, dtype=torch.int64),
        context_ids=(CONTEXT_TOKEN,),
        tiles_NCHW=tiles[owned.start : owned.stop],
        tile_range=owned,
        failed=torch.zeros(num_samples, dtype=torch.bool),
        failures=(),
        cp_plan=sharding.make_cp_plan(
            cu_seqlens.numpy(), layout.ring_size, padding=bounds[-1] - bounds[-2], node_size=layout.node_size
        ),
    )
