"""Who serves the tokenwise calls, and that it is said."""

import sys
from types import ModuleType

import pytest
import torch

from mindspeed_vita.ops import say_once
from mindspeed_vita.ops.tokenwise import api, native, swiglu


def test_plain_torch_off_the_cpu_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(say_once, "_said", set())
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    swiglu(torch.ones(1, 4))
    assert capsys.readouterr().err == ""
    for _ in range(2):
        swiglu(torch.ones(1, 4, device="meta"))
    assert capsys.readouterr().err == "norm, gate and rotation: plain torch on meta, for which there are no fused kernels here\n"


def test_a_run_says_who_serves(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(say_once, "_said", set())
    fused = ModuleType("quick")
    fused.refuse = lambda name, x: "is broken" if name == "swiglu" else None
    fused.rms_norm, fused.swiglu, fused.apply_rotary = native.rms_norm, native.swiglu, native.apply_rotary
    monkeypatch.setitem(sys.modules, "quick", fused)
    monkeypatch.setattr(api, "_FUSED", {"cpu": "quick"})
    api.announce(torch.float32, torch.device("cpu"), width=16, num_heads=2)
    assert capsys.readouterr().err.splitlines() == [
        "swiglu: plain torch on cpu, which is slower; the fused kernel is broken",
        "row_losses: plain torch on cpu, which is slower; the fused kernel is not there",
        "kernels: norm, rotation by quick; gate, loss by plain torch",
    ]
    monkeypatch.setattr(api, "_asked", "plain")  # what kernels.tokenwise=plain sets
    api.announce(torch.float32, torch.device("cpu"), width=16, num_heads=2)
    assert capsys.readouterr().err == "kernels: norm, gate, rotation, loss by plain torch\n"


def test_a_plugin_takes_ligers_place_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_FUSED", dict(api._FUSED))
    api.register_kernels("cuda", "mine")
    assert api._FUSED["cuda"] == "mine"
    with pytest.raises(ValueError, match="cuda has the fused kernels of mine already; found yours"):
        api.register_kernels("cuda", "yours")
