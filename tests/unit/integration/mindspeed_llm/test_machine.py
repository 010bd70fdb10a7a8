"""What a machine lacks is said before MindSpeed-LLM is imported, all at once, with what to do."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mindspeed_vita.integration.mindspeed_llm import machine
from mindspeed_vita.integration.mindspeed_llm.machine import check_machine, core_version, release
from mindspeed_vita.platform import npu


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders that look like the three upstream projects, alone on the path."""
    for name in ("megatron/core", "megatron/training", "mindspeed", "mindspeed_llm"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text("raise AssertionError('imported')")
    (tmp_path / "megatron/core/package_info.py").write_text("MAJOR = 0\nMINOR = 12\nPATCH = 1\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


@pytest.fixture
def ascend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment with CANN, and a torch_npu that fits."""
    monkeypatch.setattr(npu, "why_unavailable", lambda: None)
    monkeypatch.setitem(sys.modules, "torch_npu", SimpleNamespace(__version__=torch.__version__.split("+")[0] + ".post8"))
    return {"ASCEND_HOME_PATH": str(tmp_path)}


def test_a_machine_with_everything_passes_and_imports_nothing(upstream: Path, ascend: dict[str, str]):
    check_machine(ascend)
    assert core_version() == "0.12.1"


def test_everything_that_lacks_is_named_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(npu, "why_unavailable", lambda: "torch_npu does not load: libhccl.so: cannot open shared object file")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ValueError) as error:
        check_machine({})
    text = str(error.value)
    assert "CANN is missing: ASCEND_HOME_PATH is not set; install CANN 9.1.0 and source its set_env.sh" in text
    assert "libhccl.so: cannot open shared object file; install the wheel that pairs with torch" in text
    assert all(f"{name} (branch" in text for name in ("Megatron-LM", "MindSpeed", "MindSpeed-LLM"))


def test_a_cann_folder_that_is_not_there_is_named(upstream: Path, ascend: dict[str, str]):
    with pytest.raises(ValueError, match="ASCEND_HOME_PATH='/nowhere' is no folder"):
        check_machine({"ASCEND_HOME_PATH": "/nowhere"})


@pytest.mark.parametrize("wheel", ["2.1.0.post17", "same line, other patch"])
def test_a_torch_npu_of_another_release_is_refused(wheel: str, upstream: Path, ascend: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    major, minor, patch = release(torch.__version__)
    wheel = wheel if wheel[0].isdigit() else f"{major}.{minor}.{patch + 1}.post2"
    monkeypatch.setitem(sys.modules, "torch_npu", SimpleNamespace(__version__=wheel))
    message = rf"torch_npu {wheel} does not match torch .*; install torch_npu {major}.{minor}.{patch} \(any post release\), or torch"
    with pytest.raises(ValueError, match=message):
        check_machine(ascend)


def test_another_line_of_megatron_core_is_refused(upstream: Path, ascend: dict[str, str]):
    (upstream / "megatron/core/package_info.py").write_text("MAJOR = 0\nMINOR = 16\nPATCH = 1\n")
    with pytest.raises(ValueError, match=r"megatron.core is 0.16.1, but 0.12.x is needed; put Megatron-LM .* first on PYTHONPATH"):
        check_machine(ascend)


def test_a_wheel_without_megatron_training_is_refused(upstream: Path, ascend: dict[str, str]):
    (upstream / "megatron/training/__init__.py").unlink()
    (upstream / "megatron/training").rmdir()
    with pytest.raises(ValueError, match="a wheel without megatron.training; put Megatron-LM"):
        check_machine(ascend)


@pytest.mark.parametrize("version, expected", [("2.7.1.post8", (2, 7, 1)), ("2.13.0+cpu", (2, 13, 0)), ("2.7.1rc1", (2, 7, 1))])
def test_a_release_is_read(version: str, expected: tuple[int, int, int]):
    assert machine.release(version) == expected
