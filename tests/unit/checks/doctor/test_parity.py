"""vita doctor --parity and its exit status."""

from __future__ import annotations

import pytest
import torch

from mindspeed_vita.checks.parity.check import compare
from mindspeed_vita.cli.main import main


@pytest.mark.slow
@pytest.mark.distributed
def test_parity_reports_each_layout_and_says_which_were_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--parity", "--processes", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("PASS") for line in lines) == 10  # four layouts of two processes, tp with both towers, with and without resets
    assert sum("not run: needs 4 processes, 2 fit here" in line for line in lines) == 12
    assert lines[-1].startswith("PASS")


def test_one_process_has_nothing_to_compare(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--parity", "--processes", "1"]) == 2
    assert "no layout to compare" in capsys.readouterr().err


def test_a_wrong_gradient_is_found() -> None:
    expected = (2.0, {"a": torch.tensor([1.0, -4.0]), "b": torch.tensor([1e-3])})
    near = compare((2.0, {"a": torch.tensor([1.0, -4.00001]), "b": torch.tensor([1e-3])}), expected)
    assert near.equal and near.parameter == "a"
    far = compare((2.0, {"a": torch.tensor([1.0, -4.0]), "b": torch.tensor([1.01e-3])}), expected)
    assert not far.equal and far.parameter == "b" and far.gradient == pytest.approx(0.01, rel=1e-3)
    broken = compare((2.0, {"a": torch.tensor([1.0, -4.0]), "b": torch.tensor([float("nan")])}), expected)
    assert not broken.equal and broken.parameter == "b"
    assert not compare((float("nan"), expected[1]), expected).equal
    with pytest.raises(ValueError, match="gradients of different parameters"):
        compare((2.0, {"a": torch.tensor([1.0, -4.0])}), expected)
    with pytest.raises(ValueError, match="would show nothing"):
        compare((2.0, {"a": torch.zeros(1)}), (2.0, {"a": torch.zeros(1)}))
