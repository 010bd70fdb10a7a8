"""Who serves the tokenwise calls, and that it is said."""

import pytest
import torch

from mindspeed_vita.ops import say_once
from mindspeed_vita.ops.tokenwise import swiglu


def test_plain_torch_off_the_cpu_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(say_once, "_said", set())
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    swiglu(torch.ones(1, 4))
    assert capsys.readouterr().err == ""
    for _ in range(2):
        swiglu(torch.ones(1, 4, device="meta"))
    assert capsys.readouterr().err == "norm, gate and rotation: plain torch on meta, for which there are no fused kernels here\n"
