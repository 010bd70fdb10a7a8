"""megatron.core's CUDA calls reach the CPU, and nobody else notices."""

from __future__ import annotations

import pytest
import torch

from mindspeed_vita.platform import cpu, megatron_compat, redirect

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is visible, so nothing is redirected")


@pytest.fixture(scope="module", autouse=True)
def enabled():
    cpu.enable_megatron()
    cpu.enable_megatron()  # a second call changes nothing


def test_cuda_by_name_means_the_cpu():
    assert torch.zeros(2, device="cuda").device.type == "cpu"
    assert torch.tensor([1.0], device="cuda:3").device.type == "cpu"
    assert torch.empty(1, device=torch.cuda.current_device()).device.type == "cpu"
    assert torch.ones(2).cuda().device.type == "cpu"
    assert torch.ones(2).to("cuda").to(device="cuda").device.type == "cpu"
    assert torch.nn.Linear(1, 1).cuda().weight.device.type == "cpu"


def test_other_devices_keep_their_meaning():
    assert torch.zeros(2, device="meta").device.type == "meta"
    assert torch.ones(2).to("meta").device.type == "meta"
    with torch.device("meta"):
        assert torch.zeros(2).device.type == "meta"


def test_tensor_type_tells_everybody_but_core_the_truth():
    assert torch.ones(1).type() == "torch.FloatTensor"
    inside = {"__name__": "megatron.core.optimizer.clip_grads", "tensor": torch.ones(1)}
    assert eval("tensor.type()", inside) == "torch.cuda.FloatTensor"
    assert torch.ones(1).type(torch.float64).dtype == torch.float64


def test_streams_are_those_of_the_device():
    stream = torch.cuda.current_stream()
    stream.wait_stream(torch.cuda.current_stream(torch.device("cuda", 0)))
    torch.cuda.synchronize()
    assert type(stream) is type(torch.cpu.current_stream())


def test_random_states_of_the_tracker_are_those_of_the_host():
    state = torch.cuda.get_rng_state()
    first = torch.rand(3)
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)


def test_a_second_device_is_refused():
    with pytest.raises(RuntimeError, match="already runs on cpu"):
        redirect.redirect_cuda(torch.device("meta"), torch.random, torch.cpu)


def test_the_imported_core_is_one_of_the_lines():
    megatron_compat.check_version()
    assert megatron_compat.core_version() in megatron_compat.SUPPORTED


@pytest.mark.parametrize("version", [(0, 9), (0, 20)])
def test_another_core_is_refused(monkeypatch, version):
    monkeypatch.setattr(megatron_compat, "core_version", lambda: version)
    expected = rf"megatron-core 0\.{version[1]} is not supported; install one of 0\.12\.x, 0\.16\.x, 0\.19\.x .*Python 3\.12"
    with pytest.raises(ValueError, match=expected):
        megatron_compat.check_version()
