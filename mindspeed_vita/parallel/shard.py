"""From a pack to one rank's model inputs: its tokens by the plan's index, its tiles, and the route of the vision rows."""

from __future__ import annotations

from typing import Any, Optional

import torch

from mindspeed_vita.config import Recipe
from mindspeed_vita.data.batch import IGNORE, PackedBatch
from mindspeed_vita.models.inputs import ModelInputs, VisionRoute
from mindspeed_vita.models.splice import check_counts
from mindspeed_vita.ops.attention.ahead import Ahead
from mindspeed_vita.ops.shape_buckets import bucketed_rows
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.parallel.tile_exchange import gather_tiles
from mindspeed_vita.platform import Platform
from mindspeed_vita.sharding import CPPlan, TileRoute, index, tile_owner


class Sharder:
    """Cuts packs for one rank. Both engines and generation build one and use it for every pack.

    Args:
        recipe: the run. The model was built from the same one.
        layout: this rank's layout.
        platform: where the tensors go.
    """

    def __init__(self, recipe: Recipe, layout: ParallelLayout, platform: Platform) -> None:
        self.layout, self.device = layout, platform.device
        self._platform = platform
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
        layout = self.layout
        num_tiles = len(batch.tile_first_token)
        in_context = torch.isin(batch.tokens_T, torch.tensor(batch.context_ids, dtype=torch.int64))
        check_counts(int(in_context.sum()), num_tiles, self._tokens_per_tile)
        cp_plan = batch.cp_plan.shared_by(layout.ulysses_size).by_node(layout.node_size)
        own = torch.from_numpy(index(cp_plan, layout.cp_rank))

        has_tiles = num_tiles > 0 and layout.is_first_stage
        supervised_Q = bucketed_rows(batch.labels_T[own] != IGNORE, self.device.type)
        # the last sample also stands for padding: there, rows that bucketed_rows adds may lie, and their loss is 0
        sample_Q = torch.bucketize(own[supervised_Q], batch.sample_cu[1:], right=True).clamp_max(max(len(batch.sample_ids) - 1, 0))
        tensors = {
            "tokens_T": batch.tokens_T[own],
            "labels_T": batch.labels_T[own],
            "weights_T": batch.weights_T[own],
            "positions_T": batch.positions_T[own],
            "supervised_Q": supervised_Q,
            "sample_Q": sample_Q,
            "source_Q": batch.source_ids[sample_Q],
            # a pack is counted once: on the first of its context-parallel ranks
            "loss_count": torch.tensor(batch.loss_count if layout.cp_rank == 0 else 0, dtype=torch.int32),
        }
        route = batch.with_route(**self._routing).route if has_tiles else None
        moved, moved_route = self._move_together(tensors, route, cp_plan)
        return ModelInputs(
            **moved,
            sample_ids=tuple(batch.sample_ids.tolist()),
            source_ids=tuple(batch.source_ids.tolist()),
            longest_document=cp_plan.longest_document,
            cp_plan=cp_plan,
            tiles_NCHW=self._tiles(batch, gather=has_tiles and self._tensor),
            num_tiles=num_tiles,
            route=moved_route,
        )

    def _move_together(
        self, tensors: dict[str, torch.Tensor], route: Optional[TileRoute], cp_plan: CPPlan
    ) -> tuple[dict[str, torch.Tensor], Optional[VisionRoute]]:
        """The tensors, the route, and what attention will ask for of the plan, on the device. On an accelerator that is one copy."""
        rows = [] if route is None else [torch.from_numpy(route.send_rows), torch.from_numpy(route.targets)]
        ahead = Ahead(()) if self.device.type == "cpu" else Ahead.of(cp_plan.steps(self.layout.ring_rank))
        moved = iter(self._platform.to_device_together([*tensors.values(), *rows, *ahead.tensors()]))
        on_device = {name: next(moved) for name in tensors}
        moved_route = None
        if route is not None:
            counts = {"send_counts": route.send_counts, "recv_counts": route.recv_counts}
            moved_route = VisionRoute(send_rows=next(moved), targets=next(moved), **counts)
        ahead.keep(self.device, list(moved))
        return on_device, moved_route

    def _tiles(self, batch: PackedBatch, *, gather: bool) -> torch.Tensor:
        """This rank's tiles on the device; gather: with those of its tp neighbours, which encode them together."""
        layout, tiles_NCHW = self.layout, self._platform.to_device(batch.tiles_NCHW)
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
