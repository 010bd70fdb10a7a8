"""From a pack to one rank's model inputs: its tokens by the plan's index, its tiles, and the route of the vision rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import torch

from mindspeed_vita.data.batch import IGNORE, PackedBatch
from mindspeed_vita.models.inputs import ModelInputs, VisionRoute
from mindspeed_vita.models.splice import check_counts
from mindspeed_vita.ops.shape_buckets import bucketed_rows
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.parallel.tile_exchange import gather_tiles
from mindspeed_vita.sharding import TileRoute, index, tile_owner


def shard_batch(
    batch: PackedBatch,
    layout: ParallelLayout,
    device: torch.device,
    *,
    tokens_per_tile: int,
    vision_parallel: str,
    pinned_memory: bool = False,
) -> ModelInputs:
    """The share of a pack that this rank works on. Collective over tp with vision_parallel=tensor: decoded tiles are put together.

    Args:
        batch: the whole pack's integers, and this rank's tiles.
        layout: this rank's layout.
        device: where the tensors go.
        tokens_per_tile: language-model tokens of one tile (ModelConfig.tokens_per_tile).
        vision_parallel: as the model was built (ParallelConfig.vision_parallel).
        pinned_memory: copy to the device from pinned memory, so that the host goes on meanwhile (Capabilities.pinned_memory).

    Raises:
        ValueError: the pack's vision tokens and tiles do not agree.
    """
    num_tiles = len(batch.tile_first_token)
    in_context = torch.isin(batch.tokens_T, torch.tensor(batch.context_ids, dtype=torch.int64))
    check_counts(int(in_context.sum()), num_tiles, tokens_per_tile)
    routing = route_arguments(layout, tokens_per_tile=tokens_per_tile, vision_parallel=vision_parallel)
    cp_plan = batch.cp_plan.shared_by(layout.ulysses_size)
    own = torch.from_numpy(index(cp_plan, layout.cp_rank))

    def move(values: torch.Tensor) -> torch.Tensor:
        return (values.pin_memory() if pinned_memory else values).to(device, non_blocking=pinned_memory)

    def share(values_S: torch.Tensor) -> torch.Tensor:
        return move(values_S[own])

    has_tiles, tensor = num_tiles > 0 and layout.is_first_stage, vision_parallel == "tensor"
    tiles_NCHW = move(batch.tiles_NCHW)
    if has_tiles and tensor:
        neighbours = slice(layout.cp_rank * layout.tp_size, (layout.cp_rank + 1) * layout.tp_size)
        owned = tile_owner(num_tiles, layout.tile_group_size)[neighbours]
        tiles_NCHW = gather_tiles(tiles_NCHW, [len(tiles) for tiles in owned], layout.tp_group)
    return ModelInputs(
        tokens_T=share(batch.tokens_T),
        labels_T=share(batch.labels_T),
        weights_T=share(batch.weights_T),
        supervised_Q=move(bucketed_rows(batch.labels_T[own] != IGNORE, device.type)),
        # a pack is counted once: on the first of its context-parallel ranks
        loss_count=move(torch.tensor(batch.loss_count if layout.cp_rank == 0 else 0, dtype=torch.int32)),
        positions_T=share(batch.positions_T),
        longest_document=cp_plan.longest_document,
        cp_plan=cp_plan,
        tiles_NCHW=tiles_NCHW,
        num_tiles=num_tiles,
        route=_moved(batch.with_route(**routing).route, move) if has_tiles else None,
    )


def route_arguments(layout: ParallelLayout, *, tokens_per_tile: int, vision_parallel: str) -> dict[str, Any]:
    """Arguments of PackedBatch.with_route for one rank."""
    return {
        "tokens_per_tile": tokens_per_tile,
        "tp_size": layout.tp_size,
        "ulysses": layout.ulysses_size,
        "group_rank": layout.tile_rank,
        "tensor": vision_parallel == "tensor",
    }


def _moved(route: Optional[TileRoute], move: Callable[[torch.Tensor], torch.Tensor]) -> VisionRoute:
    assert route is not None
    return VisionRoute(
        send_rows=move(torch.from_numpy(route.send_rows)),
        send_counts=route.send_counts,
        recv_counts=route.recv_counts,
        targets=move(torch.from_numpy(route.targets)),
    )
