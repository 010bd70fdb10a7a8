"""One rank's view of a pack: what VitaModel.forward takes. parallel/shard.py makes it from a PackedBatch.

Shapes: T tokens of this context-parallel rank, N tiles that this rank encodes.
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
        places: int64 on the device, the local token of each received row.
    """

    send_rows: torch.Tensor
    send_counts: tuple[int, ...]
    recv_counts: tuple[int, ...]
    places: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """Tensors are on the compute device.

    Attributes:
        tokens_T: int64 token ids.
        labels_T: int64 next tokens, -100 where unsupervised.
        weights_T: float32 factor on each token's loss.
        supervised_Q: int64, the tokens whose label is not -100; found on the host, where nothing waits for it. On an NPU some
            unsupervised tokens follow, so that there are few distinct lengths (ops.shape_buckets).
        loss_count: int32 scalar, added up over context and data parallelism what the loss is divided by (PackedBatch.loss_count).
        positions_T: int64 positions for the rotary embedding.
        longest_document: tokens of the longest document, over all ranks; LongRoPE chooses by it. While an answer grows, those there are.
        plan: owners and documents of the whole pack.
        tiles_NCHW: uint8, tiles that this rank encodes.
        num_tiles: tiles of the whole pack, over all ranks.
        route: exchange of vision rows; None where there is nothing to exchange (no tiles, or not the first pipeline stage).
        vision_rows_RH: the rows for route.places where the tiles have been encoded before (VitaModel.encode_tiles), else None.
    """

    tokens_T: torch.Tensor
    labels_T: torch.Tensor
    weights_T: torch.Tensor
    supervised_Q: torch.Tensor
    loss_count: torch.Tensor
    positions_T: torch.Tensor
    longest_document: int
    plan: CPPlan
    tiles_NCHW: torch.Tensor
    num_tiles: int
    route: Optional[VisionRoute]
    vision_rows_RH: Optional[torch.Tensor] = None
