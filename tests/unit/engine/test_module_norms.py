"""The gradient norm of each module over megatron.core's optimizers, also those that are not shared out over data parallelism."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

from mindspeed_vita.config import MODULES
from mindspeed_vita.engine.module_norms import megatron_norms
from mindspeed_vita.engine.session import distributed
from mindspeed_vita.parallel.build import build_model
from mindspeed_vita.platform import get_platform, megatron_compat
from tests.tiny_data import TinyData


@pytest.mark.parametrize("precision, shared", [("fp32", False), ("bf16", False), ("bf16", True)])
def test_the_norms_are_those_of_the_gradients_and_make_up_the_optimizers_own(
    tiny: TinyData, tmp_path: Path, precision: str, shared: bool
) -> None:
    recipe, bf16 = tiny.recipe(tmp_path, train={"precision": precision}), precision == "bf16"
    with distributed(recipe, get_platform()) as layout:
        model = build_model(recipe, layout).bfloat16() if bf16 else build_model(recipe, layout)
        settings = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=shared)
        wrapped = DistributedDataParallel(model.config, settings, model, **megatron_compat.param_layout_argument(model, settings))
        dtype = torch.bfloat16 if bf16 else torch.float32
        told = OptimizerConfig(optimizer="adam", lr=1e-3, clip_grad=1e-3, bf16=bf16, params_dtype=dtype, use_distributed_optimizer=shared)
        optimizer = get_megatron_optimizer(told, [wrapped], use_gloo_process_groups=False)
        generator, squares = torch.Generator().manual_seed(1), dict.fromkeys(MODULES, 0.0)
        for name, parameter in model.named_parameters():
            parameter.main_grad.copy_(torch.randn(parameter.shape, generator=generator))
            squares[name.partition(".")[0]] += float(parameter.main_grad.double().square().sum())
        optimizer.prepare_grads()
        found = megatron_norms(optimizer, [model])
        assert found.tolist() == pytest.approx([math.sqrt(square) for square in squares.values()], rel=1e-5)
        assert math.sqrt(found.square().sum()) == pytest.approx(float(optimizer.get_grad_norm()), rel=1e-5)


def test_the_newest_line_has_another_name_for_the_counted_gradients() -> None:
    class Newer:
        """megatron-core 0.19's optimizer."""

        def get_grads_for_grad_norm(self) -> list[torch.Tensor]:
            return [torch.ones(2)]

    (gradient,) = megatron_compat.gradients_in_norm(Newer())
    assert gradient.tolist() == [1, 1]
