"""Parameter groups carry their own learning rates and weight decay, on every megatron-core line; empty groups are harmless."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mindspeed_vita.config import TrainConfig, recipe_from_dict
from mindspeed_vita.engine import optimizer as optim
from mindspeed_vita.engine.session import init_distributed, shutdown
from mindspeed_vita.parallel import parameter_groups
from mindspeed_vita.platform import get_platform
from tests.pools import OVERLAYS, overlay

MODEL = {
    "vision": {"tile_size": 28, "patch_size": 7, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "ffn_hidden_size": 32},
    "projector": {"hidden_size": 16},
    "language": {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "num_kv_heads": 2, "ffn_hidden_size": 32, "vocab_size": 64},
}
TRAIN = {
    "precision": "fp32",
    "steps": 10,
    "global_batch": 1,
    "lr": 1e-2,
    "min_lr": 1e-4,
    "warmup_fraction": 0.2,
    "weight_decay": 0.1,
    "vision_lr_mult": 0.1,
    "projector_lr_mult": 2.0,
    "vision_layer_decay": 0.5,
}


@pytest.fixture(scope="module", autouse=True)
def groups():
    yield
    shutdown()


def build(**train):
    recipe = recipe_from_dict({"model": MODEL, "data": {"seq_length": 64}, "train": {**TRAIN, **train}})
    platform = get_platform("cpu")
    layout = init_distributed(recipe, platform)
    from mindspeed_vita.parallel.build import build_model

    wrapped = optim.wrap_model(build_model(recipe, layout, platform.device))
    return recipe, wrapped, optim.build_optimizer(wrapped, recipe, platform)


def test_multipliers_follow_module_and_depth():
    train = TrainConfig(vision_lr_mult=0.1, projector_lr_mult=2.0, vision_layer_decay=0.9)
    assert parameter_groups.learning_rate_multiplier("language.output_layer.weight", train, 24) == 1.0
    assert parameter_groups.learning_rate_multiplier("projector.norm.bias", train, 24) == 2.0
    assert parameter_groups.learning_rate_multiplier("vision.layers.23.ls1", train, 24) == pytest.approx(0.1)
    assert parameter_groups.learning_rate_multiplier("vision.layers.0.ls1", train, 24) == pytest.approx(0.1 * 0.9**23)
    assert parameter_groups.learning_rate_multiplier("vision.conv1.weight", train, 24) == pytest.approx(0.1 * 0.9**24)


def test_biases_norms_and_layer_scale_do_not_decay():
    _, wrapped, _ = build()
    decaying = {name for name, parameter in wrapped.module.named_parameters() if parameter_groups.decays(name, parameter)}
    assert "language.decoder.layers.0.mlp.linear_fc1.weight" in decaying
    assert not {name for name in decaying if name.endswith(("bias", "layernorm.weight", "norm.weight", "ls1", "ls2"))}


def test_what_the_tower_adds_to_its_patches_does_not_decay():
    """Only matrices that multiply their input decay: class token, positions and newline have several dimensions and do not."""
    _, wrapped, _ = build()
    named = dict(wrapped.module.named_parameters())
    added = {"vision.class_token", "vision.position_embeddings.weight"}
    assert added <= set(named)
    assert not {name for name in added if parameter_groups.decays(name, named[name])}
    assert not parameter_groups.decays("projector.newline", torch.empty(1, 16))
    assert parameter_groups.decays("vision.conv1.weight", named["vision.conv1.weight"])


def test_every_parameter_is_in_one_group_with_its_rates():
    recipe, wrapped, _ = build()
    named = {id(parameter): name for name, parameter in wrapped.module.named_parameters()}
    groups = parameter_groups.parameter_groups(wrapped.module, recipe.train, 2)
    seen = [named[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(seen) == sorted(named.values())
    for group in groups:
        for parameter in group["params"]:
            multiplier = parameter_groups.learning_rate_multiplier(named[id(parameter)], recipe.train, 2)
            assert group["max_lr"] == pytest.approx(1e-2 * multiplier)
            assert group["min_lr"] == pytest.approx(1e-4 * multiplier)
            assert group["wd_mult"] == float(parameter_groups.decays(named[id(parameter)], parameter))


def test_the_schedule_warms_up_then_falls_to_each_groups_minimum():
    recipe, _, optimizer = build()
    schedule = optim.build_schedule(optimizer, recipe.train)
    seen = []
    for _ in range(10):
        schedule.step(increment=1)
        seen.append([group["lr"] for group in optimizer.param_groups])
    for group, rates in zip(optimizer.param_groups, zip(*seen)):
        assert rates[0] == pytest.approx(group["max_lr"] / 2)  # two steps of warm-up, the first already counts
        assert rates[1] == pytest.approx(group["max_lr"])
        assert all(a > b for a, b in zip(rates[1:], rates[2:]))
        assert rates[-1] == pytest.approx(group["min_lr"])
        assert group["weight_decay"] == pytest.approx(0.1 * group["wd_mult"])


def test_updates_equal_plain_adamw_over_the_same_groups():
    recipe, wrapped, optimizer = build(clip_grad=0)
    schedule = optim.build_schedule(optimizer, recipe.train)
    named = dict(wrapped.module.named_parameters())
    copies = {name: parameter.detach().clone().requires_grad_() for name, parameter in named.items()}
    plain = torch.optim.AdamW(
        [
            {
                "params": [copy],
                "factor": parameter_groups.learning_rate_multiplier(name, recipe.train, 2),
                "weight_decay": 0.1 * parameter_groups.decays(name, copy),
            }
            for name, copy in copies.items()
        ],
        lr=1.0,
    )
    for step in range(3):
        wrapped.zero_grad_buffer()
        for number, name in enumerate(named):
            gradient = torch.randn(named[name].shape, generator=torch.Generator().manual_seed(100 * step + number))
            named[name].main_grad.copy_(gradient)
            copies[name].grad = gradient
        schedule.step(increment=1)
        for group in plain.param_groups:
            group["lr"] = schedule.get_lr({"max_lr": 1e-2, "min_lr": 1e-4}) * group["factor"]
        plain.step()
        _, norm, _ = optimizer.step()
        assert norm == pytest.approx(torch.stack([copy.grad.norm() for copy in copies.values()]).norm().item(), rel=1e-5)
    for name, parameter in named.items():
        # the fused kernel rounds differently from the plain one: worst seen 1.2e-7 of a weight's size after three steps
        torch.testing.assert_close(parameter.detach(), copies[name].detach(), rtol=1e-6, atol=1e-7)


def test_core_logs_no_warning_that_a_user_cannot_act_on(caplog):
    build()
    assert not [record.getMessage() for record in caplog.records if record.name.startswith("megatron") and record.levelno > logging.INFO]


def test_nothing_to_train_is_an_error():
    recipe, wrapped, _ = build()
    wrapped.module.requires_grad_(False)
    with pytest.raises(ValueError, match="leaves nothing to train"):
        parameter_groups.parameter_groups(wrapped.module, recipe.train, 2)


@pytest.mark.slow
@pytest.mark.parametrize("line", OVERLAYS)
def test_all_of_this_holds_on_the_other_core_lines(line):
    folder = overlay(line)
    if "VITA_INNER" in os.environ:
        pytest.skip("this is the inner run")
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((folder, str(root))), "VITA_INNER": "1"}
    others = ("tests/unit/checkpoint/native/test_checkpoint.py", "tests/unit/checkpoint/megatron/test_flat_buffers.py")
    files = [__file__, *(str(root / name) for name in others)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
