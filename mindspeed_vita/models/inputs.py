"""One rank's view of a pack: what VitaModel.forward and the objective take. parallel/shard.py makes it from a PackedBatch.

Shapes: T tokens of this context-parallel rank, Q supervised tokens among them, N tiles that this rank encodes, n samples of the pack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch

from mindspeed_vita.sharding import CPPlan


@dataclass(frozen=True, kw_only=True)
class VisionRoute:
    """Where this rank's encoded rows go, and where the rows it receives belong; see sharding.tile_routes.

    Attributes:
        send_rows: int64 on the device, rows of this rank's encoded tiles in sending order.
        send_counts, recv_counts: rows to and from each rank of the exchange's group.
        targets: int64 on the device, the local token whose embedding each received row replaces.
    """

    send_rows: torch.Tensor
    send_counts: tuple[int, ...]
    recv_counts: tuple[int, ...]
    targets: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """Tensors are on the compute device.

    Attributes:
        tokens_T: int64 token ids.
        labels_T: int64 next tokens, -100 where unsupervised.
        weights_T: float32 factor on each token's loss.
        supervised_Q: int64, the tokens whose label is not -100; found on the host, where nothing waits for it. On an NPU some
            unsupervised tokens follow, so that there are few distinct lengths (ops.shape_buckets).
        sample_Q: int64, the sample of each token in supervised_Q: a place in sample_ids.
        source_Q: int64, the source of each token in supervised_Q: an entry of the mixture.
        sample_ids: the samples of the whole pack, in pack order: rows of the sample index. On the host, equal on all ranks of the pack.
        source_ids: the source of each of those samples. On the host as well.
        loss_count: this rank's part of the loss's divisor (int32 scalar, PackedBatch.loss_count). Sum it over cp and dp.
        positions_T: int64 positions for the rotary embedding.
        longest_document: tokens of the longest document, over all ranks; LongRoPE chooses by it. While an answer grows, those there are.
        cp_plan: owners and documents of the whole pack.
        tiles_NCHW: uint8, tiles that this rank encodes.
        num_tiles: tiles of the whole pack, over all ranks.
        route: exchange of vision rows; None where there is nothing to exchange (no tiles, or not the first pipeline stage).
        vision_rows_RH: the rows for route.targets where the tiles have been encoded before (VitaModel.encode_tiles), else None.
    """

    tokens_T: torch.Tensor
    labels_T: torch.Tensor
    weights_T: torch.Tensor
    supervised_Q: torch.Tensor
    sample_Q: torch.Tensor
    source_Q: torch.Tensor
    sample_ids: tuple[int, ...]
    source_ids: tuple[int, ...]
    loss_count: torch.Tensor
    positions_T: torch.Tensor
    longest_document: int
    cp_plan: CPPlan
    tiles_NCHW: torch.Tensor
    num_tiles: int
    route: Optional[VisionRoute]
    vision_rows_RH: Optional[torch.Tensor] = None
