"""scripts/gpu_check.py and scripts/npu_check.py on a machine without their device."""

import pytest
import torch

from mindspeed_vita.checks.hardware_check.main import main


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_the_device_one_message_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("DEVICE", raising=False)
    with pytest.raises(SystemExit) as ended:
        main("cuda", [])
    assert ended.value.code == 2
    assert "this script needs one cuda, unless the environment variable DEVICE names another device" in capsys.readouterr().err
