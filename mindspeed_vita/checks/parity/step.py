"""One step of the real Stepper on the hard packs: its loss and every gradient as full tensors. Runs in a pool's workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import torch
import torch.distributed as dist

from mindspeed_vita.checks.parity.full_tensors import global_name, join_slices, take_slice
from mindspeed_vita.checks.parity.packs import MODEL, SEQ_LENGTH, make_pack
from mindspeed_vita.config import MODULES, Recipe, recipe_from_dict
from mindspeed_vita.parallel.chunks import ModelChunks, chunks_of
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.parallel.stages import layers_of

PACKS = 4


def make_recipe(
    layout: ParallelLayout,
    head: str = "masked",
    modules: tuple[str, ...] = MODULES,
    recompute: str = "none",
    vision_parallel: str = "balanced",
    vision: Optional[dict[str, Any]] = None,
    language: Optional[dict[str, Any]] = None,
    train: Optional[dict[str, Any]] = None,
    pipeline: Optional[dict[str, Any]] = None,
) -> Recipe:
    """The recipe of a parity step.

    vision and language replace single settings of the model, train and pipeline add to the sections train and parallel.
    """
    sizes = {"tp": layout.tp_size, "pp": layout.pp_size, "cp": layout.cp_size, "ulysses": layout.ulysses_size}
    return recipe_from_dict(
        {
            "model": {
                **MODEL,
                "vision": {**MODEL["vision"], **(vision or {})},
                "language": {**MODEL["language"], **(language or {})},
                "lm_head": head,
            },
            "data": {"seq_length": SEQ_LENGTH},
            "parallel": {**sizes, "vision_parallel": vision_parallel, **(pipeline or {})},
            "train": {"precision": "fp32", "global_batch": PACKS, "modules": list(modules), "recompute": recompute, **(train or {})},
        }
    )


def initial_weights(
    layout: ParallelLayout, vision: Optional[dict[str, Any]] = None, language: Optional[dict[str, Any]] = None
) -> dict[str, torch.Tensor]:
    """Full weights of a model built in one process, with other settings of tower and decoder if given; biases and norms not neutral."""
    from mindspeed_vita.parallel.build import build_model

    model = build_model(make_recipe(layout, vision=vision, language=language), layout)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def load_weights(model: torch.nn.Module, full: dict[str, torch.Tensor], layout: ParallelLayout, recipe: Recipe) -> None:
    """Puts this rank's slices of full tensors into its model."""
    tower_cut = recipe.parallel.vision_parallel == "tensor"
    heads = recipe.model.vision.num_heads
    with torch.no_grad():
        for name, parameter in _whole_names(model, layout, recipe):
            whole = full[name]
            parameter.copy_(take_slice(name, whole, layout.tp_rank, layout.tp_size, tower_cut=tower_cut, heads=heads))


def _whole_names(model: Any, layout: ParallelLayout, recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """Parameters of a rank by their names in the whole model."""
    for number, chunk in enumerate(chunks_of(model)):
        first_layer = layers_of(recipe, layout.pp_rank, number).start
        for name, parameter in chunk.named_parameters():
            yield global_name(name, first_layer, tied=recipe.model.language.tie_embeddings), parameter


class _GradientReader:
    """Stands where the optimizer stands in a step and keeps the reduced gradients instead of updating."""

    def zero_grad(self) -> None:
        pass

    def step(self) -> tuple[bool, float, None]:
        return True, 0.0, None


def loss_and_gradients(
    layout: ParallelLayout,
    folder: str,
    full: dict[str, torch.Tensor],
    resets: bool,
    head: str,
    modules: tuple[str, ...],
    recompute: str = "none",
    vision_parallel: str = "balanced",
    ulysses: int = 1,
    vision: Optional[dict[str, Any]] = None,
    language: Optional[dict[str, Any]] = None,
    train: Optional[dict[str, Any]] = None,
    pipeline: Optional[dict[str, Any]] = None,
) -> Optional[tuple[float, dict[str, torch.Tensor]]]:
    """Loss of one step over four packs, and every gradient by its full name; on rank 0, None elsewhere."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    from mindspeed_vita.engine.faults import FailedSamples
    from mindspeed_vita.engine.objective import build_objective
    from mindspeed_vita.engine.step import Stepper
    from mindspeed_vita.parallel.build import build_model
    from mindspeed_vita.parallel.ring_groups import with_ring
    from mindspeed_vita.platform import get_platform

    platform = get_platform()
    sized = replace(layout, ulysses_size=ulysses)
    recipe = make_recipe(sized, head, modules, recompute, vision_parallel, vision, language, train, pipeline)
    layout = with_ring(layout, recipe.parallel, dist.get_world_size(), platform.device)
    model = build_model(recipe, layout, platform.device)
    load_weights(model, full, layout, recipe)
    # without the distributed optimizer, so that every rank holds every reduced gradient
    settings = DistributedDataParallelConfig(grad_reduce_in_fp32=True, overlap_grad_reduce=False, use_distributed_optimizer=False)
    parts = [DistributedDataParallel(chunk.config, settings, chunk) for chunk in chunks_of(model)]
    wrapped = parts[0] if len(parts) == 1 else ModelChunks(parts)
    mine = [make_pack(number, resets, layout) for number in range(layout.dp_rank, PACKS, layout.dp_size)]
    stepper = Stepper(
        recipe,
        layout,
        platform,
        model=wrapped,
        optimizer=_GradientReader(),
        batches=iter(mine),
        failed=FailedSamples(Path(folder) / "quarantine.jsonl", ()),
        objective=build_objective(recipe, layout),
    )
    result = stepper.run(1, lambda: None)
    return _gather(result.loss, model, layout, recipe)


def _gather(loss: float, model: Any, layout: ParallelLayout, recipe: Recipe) -> Optional[tuple[float, dict[str, torch.Tensor]]]:
    tower_cut = recipe.parallel.vision_parallel == "tensor"
    heads = recipe.model.vision.num_heads
    mine = {
        name: parameter.main_grad.to("cpu", copy=True) for name, parameter in _whole_names(model, layout, recipe) if parameter.requires_grad
    }
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, ((layout.pp_rank, layout.cp_rank, layout.dp_rank, layout.tp_rank), loss, mine))
    if dist.get_rank():
        return None
    assert len({part[1] for part in parts}) == 1, f"ranks report different losses: {[part[1] for part in parts]}"
    gradients: dict[str, torch.Tensor] = {}
    for pp_rank in range(layout.pp_size):
        for cp_rank in range(layout.cp_size):
            for dp_rank in range(layout.dp_size):
                ranks = sorted((part for part in parts if part[0][:3] == (pp_rank, cp_rank, dp_rank)), key=lambda part: part[0][3])
                for name in ranks[0][2]:
                    whole = join_slices(name, [part[2][name] for part in ranks], tower_cut=tower_cut, heads=heads)
                    if name in gradients:  # reduced over cp and dp, so equal on all of them
                        torch.testing.assert_close(whole, gradients[name], rtol=0, atol=0, msg=f"{name} differs over cp or dp")
                    gradients[name] = whole
    return loss, gradients
