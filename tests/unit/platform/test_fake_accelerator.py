"""A device that the package does not know trains from one module, without a change to any file of the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mindspeed_vita.config import recipe_to_dict
from mindspeed_vita.engine.loop import train
from mindspeed_vita.ops.attention import register_backend, registry
from mindspeed_vita.ops.tokenwise import api, register_kernels
from mindspeed_vita.platform import register_platform, select
from tests.tiny_data import curve, tiny

__all__ = ["curve", "tiny"]
PLUGIN = Path(__file__).with_name("fake_accelerator.py")


def test_a_device_in_a_plugin_trains_as_the_cpu_does(tiny, curve, tmp_path):
    train(tiny.recipe(tmp_path / "cpu", train={"steps": 2}))
    content = recipe_to_dict(tiny.recipe(tmp_path / "fake", train={"steps": 2}))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**content, "plugins": ["fake_accelerator"]}))
    shutil.copy(PLUGIN, tmp_path)
    command = [sys.executable, "-m", "mindspeed_vita.cli.main", "train", str(recipe)]
    run = subprocess.run(command, env={**os.environ, "DEVICE": "fake"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "device: cpu (fake), collectives: gloo" in run.stderr
    assert "attention of packs: fake" in run.stdout + run.stderr and "attention of tiles: fake" in run.stdout + run.stderr
    called = "['apply_rotary', 'blocks_backward', 'blocks_forward', 'rms_norm', 'swiglu', 'tiles']"
    assert f"calls: {called}" in run.stderr, "every kernel was the device's own"
    # the kernels sum in another order than the CPU's: after one update 4e-8 was measured
    assert curve(tmp_path / "fake") == pytest.approx(curve(tmp_path / "cpu"), rel=1e-5)


def test_a_registered_device_goes_first_and_its_name_is_its_own(monkeypatch):
    monkeypatch.setattr(select, "_DEVICES", dict(select._DEVICES))
    register_platform("mine", lambda rank: ("mine", rank), lambda: None)
    assert select.get_platform("auto", local_rank=3) == ("mine", 3)
    for name in ("cpu", "auto", "mine"):
        with pytest.raises(ValueError, match=f"the device name '{name}' is taken; names so far are auto, mine, npu, cuda, cpu"):
            register_platform(name, lambda rank: None, lambda: None)
    with pytest.raises(ValueError, match="use auto, mine, npu, cuda or cpu"):
        select.get_platform("tpu")


def test_kernels_of_another_name_are_not_replaced(monkeypatch):
    monkeypatch.setattr(registry, "_BACKENDS", dict(registry._BACKENDS))
    monkeypatch.setattr(api, "_FUSED", dict(api._FUSED))
    register_backend("mine", "a", "x")
    register_backend("mine", "a", "x")
    assert registry.backend_names("x") == ["mine", "reference"]
    with pytest.raises(ValueError, match="'mine' is taken"):
        register_backend("mine", "b", "x")
    with pytest.raises(ValueError, match="npu has the fused kernels of mindspeed_vita.ops.tokenwise.npu already; found b"):
        register_kernels("npu", "b")
