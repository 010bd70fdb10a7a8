"""The device is chosen by what is there, DEVICE overrides, and a device that is not there is an error."""

from __future__ import annotations

import pytest
import torch

from mindspeed_vita.platform import announce, get_platform, select


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """A machine with the devices one names."""

    def build(*present: str) -> None:
        monkeypatch.delenv("DEVICE", raising=False)
        missing = {name: (lambda: None) if name in present else (lambda: "it is not there") for name in ("npu", "cuda", "cpu")}
        monkeypatch.setattr(select, "_MISSING", missing)
        names = {name: (lambda rank, name=name: name) for name in missing}
        monkeypatch.setattr(select, "_FACTORIES", names)

    return build


@pytest.mark.parametrize("present, chosen", [(("npu", "cuda", "cpu"), "npu"), (("cuda", "cpu"), "cuda"), (("cpu",), "cpu")])
def test_npu_goes_before_cuda_before_cpu(machine, present, chosen):
    machine(*present)
    assert get_platform() == chosen
    assert get_platform("auto") == chosen


def test_the_environment_overrides(machine, monkeypatch):
    machine("cuda", "cpu")
    monkeypatch.setenv("DEVICE", "CPU")
    assert get_platform() == "cpu"


def test_a_missing_device_is_an_error_with_its_reason(machine):
    machine("cpu")
    with pytest.raises(ValueError, match="DEVICE=npu was asked for, but it is not there"):
        get_platform("npu")


def test_an_unknown_device_is_an_error(machine):
    machine("cpu")
    with pytest.raises(ValueError, match="use auto, npu, cuda or cpu"):
        get_platform("tpu")


def test_the_choice_is_printed_once_and_by_rank_0_only(capsys, monkeypatch):
    monkeypatch.setattr(select, "_announced", set())
    platform = get_platform("cpu")
    announce(platform, rank=1)
    announce(platform)
    announce(platform)
    assert capsys.readouterr().err.count("device: cpu") == 1


def test_a_random_state_comes_back():
    platform = get_platform("cpu")
    platform.seed(3)
    state = platform.rng_state()
    first = torch.rand(4)
    platform.set_rng_state(state)
    assert torch.equal(torch.rand(4), first)


def test_memory_is_counted_in_bytes():
    memory = get_platform("cpu").memory()
    assert 2**24 < memory.peak < memory.total
