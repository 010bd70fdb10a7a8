"""From a pack to one rank's model inputs: its tokens by the plan's index, its tiles, and the route of the vision rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import torch

from mindspeed_vita.config import Recipe
from mindspeed_vita.data.batch import IGNORE, PackedBatch
from mindspeed_vita.models.inputs import ModelInputs, VisionRoute
from mindspeed_vita.models.splice import check_counts
from mindspeed_vita.ops.shape_buckets import bucketed_rows
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.parallel.tile_exchange import gather_tiles
from mindspeed_vita.platform import Platform
from mindspeed_vita.sharding import TileRoute, index, tile_owner


class Sharder:
    """Cuts packs for one rank. Both engines and generation build one and use it for every pack.

    Args:
        recipe: the run. The model was built from the same one.
        layout: this rank's layout.
        platform: where the tensors go.
    """

    def __init__(self, recipe: Recipe, layout: ParallelLayout, platform: Platform) -> None:
        self.layout, self.device = layout, platform.device
        self._move = platform.to_device
        self._tokens_per_tile = recipe.model.tokens_per_tile
        self._tensor = recipe.parallel.vision_parallel == "tensor"
        self._routing = route_arguments(recipe, layout)

    def __call__(self, batch: PackedBatch) -> ModelInputs:
        """The share of a pack that this rank works on.

        Collective over tp with parallel.vision_parallel=tensor, where decoded tiles are put together.

        Args:
            batch: the whole pack's integers, and this rank's tiles.

        Raises:
            ValueError: the pack's vision tokens and tiles do not agree.
        """
        layout, move = self.layout, self._move
        num_tiles = len(batch.tile_first_token)
        in_context = torch.isin(batch.tokens_T, torch.tensor(batch.context_ids, dtype=torch.int64))
        check_counts(int(in_context.sum()), num_tiles, self._tokens_per_tile)
        cp_plan = batch.cp_plan.shared_by(layout.ulysses_size)
        own = torch.from_numpy(index(cp_plan, layout.cp_rank))

        def share(values_S: torch.Tensor) -> torch.Tensor:
            return move(values_S[own])

        has_tiles = num_tiles > 0 and layout.is_first_stage
        supervised_Q = bucketed_rows(batch.labels_T[own] != IGNORE, self.device.type)
        # the last sample also stands for padding: there, rows that bucketed_rows adds may lie, and their loss is 0
        sample_Q = torch.bucketize(own[supervised_Q], batch.sample_cu[1:], right=True).clamp_max(max(len(batch.sample_ids) - 1, 0))
        return ModelInputs(
            tokens_T=share(batch.tokens_T),
            labels_T=share(batch.labels_T),
            weights_T=share(batch.weights_T),
            supervised_Q=move(supervised_Q),
            sample_Q=move(sample_Q),
            source_Q=move(batch.source_ids[sample_Q]),
            sample_ids=tuple(batch.sample_ids.tolist()),
            source_ids=tuple(batch.source_ids.tolist()),
            # a pack is counted once: on the first of its context-parallel ranks
            loss_count=move(torch.tensor(batch.loss_count if layout.cp_rank == 0 else 0, dtype=torch.int32)),
            positions_T=share(batch.positions_T),
            longest_document=cp_plan.longest_document,
            cp_plan=cp_plan,
            tiles_NCHW=self._tiles(batch, gather=has_tiles and self._tensor),
            num_tiles=num_tiles,
            route=_moved(batch.with_route(**self._routing).route, move) if has_tiles else None,
        )

    def _tiles(self, batch: PackedBatch, *, gather: bool) -> torch.Tensor:
        """This rank's tiles on the device; gather: with those of its tp neighbours, which encode them together."""
        layout, tiles_NCHW = self.layout, self._move(batch.tiles_NCHW)
        if not gather:
            return tiles_NCHW
        neighbours = slice(layout.cp_rank * layout.tp_size, (layout.cp_rank + 1) * layout.tp_size)
        owned = tile_owner(len(batch.tile_first_token), layout.tile_group_size)[neighbours]
        return gather_tiles(tiles_NCHW, [len(tiles) for tiles in owned], layout.tp_group)


def route_arguments(recipe: Recipe, layout: ParallelLayout) -> dict[str, Any]:
    """Arguments of PackedBatch.with_route for one rank. Plain values, which a loader's worker can be given."""
    return {
        "tokens_per_tile": recipe.model.tokens_per_tile,
        "tp_size": layout.tp_size,
        "ulysses": layout.ulysses_size,
        "group_rank": layout.tile_rank,
        "tensor": recipe.parallel.vision_parallel == "tensor",
    }


def _moved(route: Optional[TileRoute], move: Callable[[torch.Tensor], torch.Tensor]) -> VisionRoute:
    assert route is not None
    return VisionRoute(
        send_rows=move(torch.from_numpy(route.send_rows)),
        send_counts=route.send_counts,
        recv_counts=route.recv_counts,
        targets=move(torch.from_numpy(route.targets)),
    )
