"""The CUDA backends call their kernels as those want to be called: against emulated kernels on a CPU, not on CUDA hardware."""

import importlib.metadata
import sys
from functools import partial
from types import ModuleType

import numpy as np
import pytest
import torch

from mindspeed_vita.ops.attention import Blocks, Heads, Paged, PagedSequences, Upstream, flash_attn_varlen, reference, torch_cuda
from tests.unit.ops.emulated_cuda import EmulatedCudaKernels, flash_backward, flash_forward
from tests.unit.ops.tower_attention import check_bidirectional

FREE = np.array([[3, 4, 0, 12], [4, 20, 0, 12], [25, 58, 5, 31]])  # shared keys, a single row, unequal lengths, a gap
SQUARES = np.array([[0, 33, 0, 33], [33, 34, 33, 34], [34, 60, 34, 60]])


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A flash-attn package of version 2.8 with emulated kernels; returns the names of the calls."""
    calls: list[str] = []

    def _flash_attn_varlen_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal, window_size_left=-1,
        window_size_right=-1, softcap=0.0, alibi_slopes=None, return_softmax=False, block_table=None, leftpad_k=None, seqused_k=None,
    ):  # fmt: skip
        calls.append("forward")
        out, lse = flash_forward(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, softmax_scale)
        return out, lse, torch.empty(0), torch.empty(2)

    def _flash_attn_varlen_backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p,
        softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes, deterministic, rng_state=None,
    ):  # fmt: skip
        calls.append("backward")
        assert (window_size_left, window_size_right) == (-1, -1)
        lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        for into, grad in zip((dq, dk, dv), flash_backward(dout, q, k, v, out, softmax_lse, *lengths, causal, softmax_scale)):
            into.copy_(grad)
        return torch.empty(0)

    def flash_attn_func(
        q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False,
    ):  # fmt: skip
        calls.append("tiles")
        assert q.dtype in (torch.bfloat16, torch.float16) and dropout_p == softcap == 0.0 and window_size == (-1, -1)
        scores = torch.einsum("bqnd,bknd->bnqk", q.float(), k.float()) * softmax_scale
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
        return torch.einsum("bnqk,bknd->bqnd", scores.softmax(-1), v.float()).to(q.dtype)

    def flash_attn_with_kvcache(
        q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, cache_batch_idx=None,
        cache_leftpad=None, block_table=None, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
        rotary_interleaved=True, alibi_slopes=None, num_splits=0, return_softmax_lse=False,
    ):  # fmt: skip
        calls.append("kvcache")
        assert k is v is None and not causal and return_softmax_lse and q.shape[1] == 1
        assert k_cache.shape[1] % 256 == 0, "blocks of the cache hold a multiple of 256 tokens"
        for numbers in (cache_seqlens, block_table):
            assert numbers.dtype == torch.int32 and len(numbers) == len(q)
        tables = tuple(row[: -(-int(n) // k_cache.shape[1])].numpy() for row, n in zip(block_table, cache_seqlens))
        lengths = cache_seqlens.numpy().astype(np.int64)
        sequences = PagedSequences(np.arange(1, len(q) + 1), tables, lengths, q.device)
        paged = Paged(q_TND=q[:, 0], k_BSGD=k_cache, v_BSGD=v_cache, sequences=sequences, scale=softmax_scale)
        out, lse = reference.paged_forward(paged)
        return out.unsqueeze(1), lse.unsqueeze(-1)

    package, interface = ModuleType("flash_attn"), ModuleType("flash_attn.flash_attn_interface")
    interface._flash_attn_varlen_forward = _flash_attn_varlen_forward
    interface._flash_attn_varlen_backward = _flash_attn_varlen_backward
    package.flash_attn_with_kvcache = flash_attn_with_kvcache
    package.flash_attn_interface, package.flash_attn_func = interface, flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", interface)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.8.3")
    flash_attn_varlen._refuse_installation.cache_clear()
    yield calls
    flash_attn_varlen._refuse_installation.cache_clear()


def heads(dtype: torch.dtype, *, width: int = 64, device: str = "cpu") -> Heads:
    return Heads(num_heads=1, width=width, dtype=dtype, device=torch.device(device))


def compare(backend: ModuleType, dtype: torch.dtype, width: int, segments: np.ndarray, causal: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    query, key, value, grad = (torch.randn(60, heads, width, generator=generator).to(dtype) for heads in (6, 2, 2, 6))
    results = []
    for kernels in (backend, reference):
        blocks = Blocks(q_TND=query, k_SGD=key, v_SGD=value, segments=segments, causal=causal, scale=0.2)
        out_QND, lse_QN = kernels.blocks_forward(blocks)
        rows = np.concatenate([np.arange(start, stop) for start, stop in segments[:, :2]])
        out, lse = torch.zeros_like(query), torch.zeros(60, 6)
        out[rows], lse[rows] = out_QND, lse_QN
        dq, dkv = torch.zeros(60, 6, width), torch.zeros(2, 60, 2, width)
        kernels.blocks_backward(blocks, Upstream(grad_TND=grad, out_TND=out, lse_TN=lse), dq_TND=dq, dkv_2SGD=dkv)
        results.append((out_QND, lse_QN, dq, dkv))
    # gradients of shared keys are rounded to the kernel's dtype before they are added
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for found, wanted in zip(*results):
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * float(wanted.float().abs().max()))


@pytest.mark.parametrize("segments, causal", [(FREE, False), (SQUARES, True)], ids=["free", "causal"])
@pytest.mark.parametrize("width", [64, 72, 80, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_torchs_kernels(dtype: torch.dtype, width: int, segments: np.ndarray, causal: bool) -> None:
    with EmulatedCudaKernels() as kernels:
        compare(torch_cuda, dtype, width, segments, causal)
    kind = "efficient" if dtype == torch.float32 else "flash"
    times = len(segments) if dtype == torch.float32 else 1
    assert kernels.calls == [f"_{kind}_attention_forward"] * times + [f"_{kind}_attention_backward"] * times


@pytest.mark.parametrize("segments, causal", [(FREE, False), (SQUARES, True)], ids=["free", "causal"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_flash_attn_package(flash_attn: list[str], dtype: torch.dtype, segments: np.ndarray, causal: bool) -> None:
    assert flash_attn_varlen.refuse(heads(dtype)) is None
    compare(flash_attn_varlen, dtype, 64, segments, causal)
    assert flash_attn == ["forward", "backward"]


@pytest.mark.parametrize("size, queries, wanted", [(256, (1, 1), "kvcache"), (256, (1, 3), "forward"), (128, (1, 1), "forward")])
def test_cached_keys_by_flash_attn(flash_attn: list[str], size: int, queries: tuple[int, ...], wanted: str) -> None:
    """Decoding takes the package's call for caches, where its blocks are of a size that the call takes."""
    generator = torch.Generator().manual_seed(5)
    shapes = ((sum(queries), 6), *[(4, size, 2)] * 2)
    query, keys, values = (torch.randn(*shape, 64, generator=generator).bfloat16() for shape in shapes)
    tables = (np.array([3, 0]), np.array([1]))
    sequences = PagedSequences(np.cumsum(queries), tables, np.array([size + 5, 7]), torch.device("cpu"))
    paged = Paged(q_TND=query, k_BSGD=keys, v_BSGD=values, sequences=sequences, scale=0.2)
    for found, expected in zip(flash_attn_varlen.paged_forward(paged), reference.paged_forward(paged)):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=2e-2)
    assert flash_attn == [wanted]


@pytest.mark.parametrize("width", [64, 72, 80, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_towers_attention_by_torch_is_bidirectional(dtype: torch.dtype, width: int) -> None:
    check_bidirectional(partial(torch_cuda.tiles, scale=width**-0.5), width, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_towers_attention_by_flash_attn_is_bidirectional(flash_attn: list[str], dtype: torch.dtype) -> None:
    check_bidirectional(partial(flash_attn_varlen.tiles, scale=64**-0.5), 64, dtype)
    assert flash_attn == ["tiles", "tiles"]


def test_devices_too_old_for_flash_kernels_are_refused(flash_attn: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")

    def query(dtype: torch.dtype) -> Heads:
        return heads(dtype, device="cuda:0")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    for backend in (flash_attn_varlen, torch_cuda):
        assert backend.refuse(query(torch.float16)) == "flash kernels need compute capability 8.0 or newer, Tesla V100 has 7.5"
    assert torch_cuda.refuse(query(torch.float32)) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    for backend in (flash_attn_varlen, torch_cuda):
        assert backend.refuse(query(torch.float16)) is None


def test_what_cannot_be_served_is_refused_with_the_reason(flash_attn: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert flash_attn_varlen.refuse(heads(torch.float32)) == "takes bf16 and fp16, not torch.float32"
    odd = heads(torch.bfloat16, width=20)
    assert flash_attn_varlen.refuse(odd) == torch_cuda._refuse_shape(odd) == "takes head widths that are multiples of 8 up to 256, not 20"
    assert torch_cuda._refuse_shape(heads(torch.float64)) == "takes bf16, fp16 and fp32, not torch.float64"
    assert torch_cuda.refuse(heads(torch.float32)) == "runs on cuda, not on cpu"
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.5.9")
    flash_attn_varlen._refuse_installation.cache_clear()
    assert flash_attn_varlen.refuse(heads(torch.bfloat16)) == (
        "flash-attn 2.5.9 is too old; install 2.7 or newer"
    )
