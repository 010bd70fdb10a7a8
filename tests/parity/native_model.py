"""A native model in this one process with given weights, and packs for it. Used by the tests that compare with transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from mindspeed_vita.config import ModelConfig, Recipe, TrainConfig


@contextmanager
def native_model(model: ModelConfig, weights: Mapping[str, torch.Tensor], recipe: Recipe | None = None) -> Iterator[tuple[Any, Any]]:
    """(model in fp32 and evaluation mode, layout of this process); every parameter must be in `weights`."""
    from mindspeed_vita.engine.session import distributed
    from mindspeed_vita.platform import get_platform

    recipe = replace(recipe or Recipe(), model=model, train=TrainConfig(precision="fp32"))
    platform = get_platform("cpu")
    with distributed(recipe, platform) as layout:
        from mindspeed_vita.parallel.build import build_model

        built = build_model(recipe, layout, platform.device)
        parameters = dict(built.named_parameters())
        assert parameters.keys() == weights.keys(), parameters.keys() ^ weights.keys()
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(weights[name])
        yield built.eval(), layout


def text_inputs(tokens: list[int]) -> Any:
    """Model inputs of one text-only document."""
    import numpy as np

    from mindspeed_vita.models.inputs import ModelInputs
    from mindspeed_vita.sharding import make_cp_plan

    tokens_T = torch.tensor(tokens)
    return ModelInputs(
        tokens_T=tokens_T,
        labels_T=torch.full_like(tokens_T, -100),
        weights_T=torch.zeros(len(tokens)),
        supervised_Q=torch.zeros(0, dtype=torch.int64),
        sample_Q=torch.zeros(0, dtype=torch.int64),
        source_Q=torch.zeros(0, dtype=torch.int64),
        sample_ids=(0,),
        source_ids=(0,),
        loss_count=torch.zeros((), dtype=torch.int32),
        positions_T=torch.arange(len(tokens)),
        longest_document=len(tokens),
        cp_plan=make_cp_plan(np.array([0, len(tokens)]), 1),
        tiles_NCHW=torch.zeros(0, 3, 28, 28, dtype=torch.uint8),
        num_tiles=0,
        route=None,
    )
