"""Every call of a torch_npu operator fits every known torch_npu version, and computes the same there."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from mindspeed_vita.checks.hardware_check.ascend import schemas
from mindspeed_vita.checks.hardware_check.exact import random_tensors, relative_error
from mindspeed_vita.ops.attention import Blocks, Paged, PagedSequences, Upstream, npu, reference
from mindspeed_vita.ops.tokenwise import native
from mindspeed_vita.ops.tokenwise import npu as tokenwise
from tests.npu.other_version import torch_npu

VERSIONS = ("2.7.1", "2.7.1.post8", "2.9.0", "2.9.0.post9", "2.11.0", "2.11.0.post3", "2.13.0", "2.14.0")
WITHOUT_FUSED_MERGE = ("2.7.1", "2.9.0")


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each known version in torch_npu's place."""
    request.node.bound = []
    monkeypatch.setitem(sys.modules, "torch_npu", torch_npu(request.param, request.node.bound))
    npu.statistics_order.cache_clear()
    yield request.param
    npu.statistics_order.cache_clear()


def test_the_table_knows_these_versions() -> None:
    assert tuple(schemas()) == VERSIONS


@pytest.mark.parametrize("causal", [True, False])
def test_blocks(version: str, causal: bool) -> None:
    segments = np.array([[0, 5, 0, 5], [5, 12, 5, 12]]) if causal else np.array([[0, 5, 0, 9], [5, 12, 3, 12]])
    query, key, value, grad = random_tensors([(12, 4, 64), (12, 2, 64), (12, 2, 64), (12, 4, 64)], torch.float32)
    results = []
    for kernels in (npu, reference):
        blocks = Blocks(q_TND=query, k_SGD=key, v_SGD=value, segments=segments, causal=causal, scale=0.2)
        out, lse = kernels.blocks_forward(blocks)
        dq, dkv = torch.zeros_like(query), torch.zeros(2, *key.shape)
        kernels.blocks_backward(blocks, Upstream(grad_TND=grad, out_TND=out, lse_TN=lse), dq_TND=dq, dkv_2SGD=dkv)
        results.append((out, lse, dq, dkv))
    assert max(relative_error(*pair) for pair in zip(*results)) < 1e-6


def test_cached_keys_where_the_operator_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[str] = []
    monkeypatch.setitem(sys.modules, "torch_npu", torch_npu("2.13.0", bound))
    query, keys, values = (x.bfloat16() for x in random_tensors([(3, 4, 64), *[(3, 128, 2, 64)] * 2], torch.float32))
    tables = (np.array([2, 0]), np.array([1]))
    sequences = PagedSequences(np.array([1, 3]), tables, np.array([130, 7]), torch.device("cpu"))
    paged = Paged(q_TND=query, k_BSGD=keys, v_BSGD=values, sequences=sequences, scale=0.125)
    assert max(relative_error(*pair) for pair in zip(npu.paged_forward(paged), reference.paged_forward(paged))) < 2e-3
    assert bound == ["npu_fused_infer_attention_score"]


def test_tower_and_tokens(version: str, request: pytest.FixtureRequest) -> None:
    query, key, value, heads, angles, weight = random_tensors([*[(2, 6, 3, 16)] * 3, (7, 3, 16), (7, 16), (16,)], torch.float32)
    cases = [
        (npu.tiles(query, key, value, 0.25), reference.tiles(query, key, value, 0.25)),
        (tokenwise.rms_norm(query, weight, 1e-6), native.rms_norm(query, weight, 1e-6)),
        (tokenwise.swiglu(query), native.swiglu(query)),
        (tokenwise.apply_rotary(heads, angles.cos(), angles.sin()), native.apply_rotary(heads, angles.cos(), angles.sin())),
    ]
    assert max(relative_error(*case) for case in cases) < 1e-6
    assert set(request.node.bound) == {"npu_fusion_attention", "npu_rms_norm", "npu_swiglu", "npu_rotary_mul"}


def test_the_merge_is_fused_where_the_version_has_it(version: str) -> None:
    out, other = random_tensors([(9, 2, 64), (9, 2, 64)], torch.float32)
    assert npu.can_merge(out) == (version not in WITHOUT_FUSED_MERGE)
    if npu.can_merge(out):
        lse, other_lse = random_tensors([(9, 2), (9, 2)], torch.float32)
        weights = torch.stack([lse, other_lse]).softmax(0).unsqueeze(-1)
        found, found_lse = npu.merged(out, lse, other, other_lse)
        assert relative_error(found, weights[0] * out + weights[1] * other) < 1e-6
        assert relative_error(found_lse, torch.logaddexp(lse, other_lse)) < 1e-6


def test_an_argument_that_a_version_does_not_know_is_refused() -> None:
    with pytest.raises(TypeError, match="sink"):
        torch_npu("2.7.1", []).npu_fusion_attention(*[torch.zeros(2, 2, 16)] * 3, 2, "TND", sink=None)
