"""Our model computes a checkpoint of any format: native, MindSpeed-LLM, Megatron, and Hugging Face folders that no class computes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mindspeed_vita.checkpoint.mapping.rules import check_shapes
from mindspeed_vita.checkpoint.source import Source
from mindspeed_vita.checks.logits.lockstep import Tell
from mindspeed_vita.checks.logits.probe import Probe
from mindspeed_vita.checks.logits.side import Side
from mindspeed_vita.checks.logits.streamed import Parts, StreamedModel, Weights
from mindspeed_vita.config import Recipe, TrainConfig
from mindspeed_vita.files.shard_stream import Report

if TYPE_CHECKING:
    from mindspeed_vita.models.inputs import ModelInputs
    from mindspeed_vita.models.vita import VitaModel

_NATIVE = Parts(
    tower_layers="vision.layers",
    tower_norm="vision.final_layernorm",
    projector="projector",
    table="language.embedding.word_embeddings",
    layers="language.decoder.layers",
    norm="language.decoder.final_layernorm",
    head="language.output_layer",
)


def native_side(folder: Path, source: Source) -> tuple[Side, AbstractContextManager[Any]]:
    """A checkpoint by our model, and the context in which that runs: megatron.core needs its parallel state, of one process.

    Args:
        folder: the checkpoint, for messages.
        source: the same, opened.
    """
    from mindspeed_vita.engine.session import distributed
    from mindspeed_vita.platform import get_platform

    recipe = Recipe(plugins=source.recipe.plugins, model=source.recipe.model, train=TrainConfig(precision="fp32"))

    def run(types: Mapping[str, torch.dtype], report: Report, probe: Probe, tell: Tell) -> None:
        model = _our_model(recipe)
        try:
            check_shapes(source.weights.shapes(), {name: tuple(held.shape) for name, held in model.named_parameters()}, side="native")
        except ValueError as error:
            raise ValueError(f"{folder}: its settings are of another model than its weights: {error}") from error
        weights = Weights(tensors=source.weights, names={name: name for name in source.weights}, types=types, report=report)
        streamed = StreamedModel(model, _NATIVE, weights, tell)
        hidden_T1H = model.decode(_model_inputs(probe))
        rows_T = torch.arange(len(hidden_T1H))
        streamed.logits(hidden_T1H, lambda hidden, weight: model.head.logits(hidden, weight, rows_T))

    return Side(computed_by="our model code", avoid=(), run=run), distributed(recipe, get_platform("cpu"))


def _our_model(recipe: Recipe) -> VitaModel:
    from mindspeed_vita.ops.rotary import RotaryTables
    from mindspeed_vita.parallel.build import build_model
    from mindspeed_vita.parallel.layout import ParallelLayout

    layout = ParallelLayout.from_megatron(torch.device("cpu")).with_ulysses(1, torch.device("cpu"))
    with torch.device("meta"):
        model = build_model(recipe, layout, "meta")
    model.rotary = RotaryTables(recipe.model.language)  # its frequencies are no parameters
    model.eval()
    return model


def _model_inputs(probe: Probe) -> ModelInputs:
    from mindspeed_vita.models.inputs import ModelInputs, VisionRoute
    from mindspeed_vita.sharding import make_cp_plan

    length, rows = len(probe.tokens_T), len(probe.places_R)
    none = torch.zeros(0, dtype=torch.int64)
    return ModelInputs(
        tokens_T=probe.with_context(0),
        labels_T=torch.full((length,), -100),
        weights_T=torch.zeros(length),
        supervised_Q=none,
        sample_Q=none,
        source_Q=none,
        sample_ids=(0,),
        source_ids=(0,),
        loss_count=torch.zeros((), dtype=torch.int32),
        positions_T=torch.arange(length),
        longest_document=length,
        cp_plan=make_cp_plan(np.array([0, length]), 1),
        tiles_NCHW=probe.tiles_NCHW,
        num_tiles=len(probe.tiles_NCHW),
        route=VisionRoute(send_rows=torch.arange(rows), send_counts=(rows,), recv_counts=(rows,), targets=probe.places_R),
    )
