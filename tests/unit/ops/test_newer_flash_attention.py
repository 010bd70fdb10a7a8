"""FlashAttention-3 and -4 are called as their interfaces want it: against modules with the recorded signatures. Not run on a GPU."""

import importlib.machinery
import importlib.metadata
import sys
from collections.abc import Iterator
from functools import partial
from types import ModuleType

import numpy as np
import pytest
import torch

from mindspeed_vita.ops.attention import Heads, Paged, PagedSequences, choose, flash_attn_3, flash_attn_4, reference
from tests.unit.ops.emulated_cuda import flash_backward, flash_forward
from tests.unit.ops.test_cuda_blocks import FREE, SQUARES, compare, heads
from tests.unit.ops.tower_attention import check_bidirectional

NAMES = {"flash_attn_3": "3.0.0", "flash-attn-4": "4.0.0b30"}


def _bidirectional(q, k, v, scale) -> torch.Tensor:
    assert q.dtype in (torch.bfloat16, torch.float16)
    scores = torch.einsum("bqnd,bknd->bnqk", q.float(), k.float()) * scale
    return torch.einsum("bnqk,bknd->bqnd", scores.softmax(-1), v.float()).to(q.dtype)


def interface_3(calls: list[str]) -> ModuleType:
    """hopper/flash_attn_interface.py of August 2026: names, order and defaults of the arguments, with emulated kernels."""

    def _flash_attn_forward(
        q, k, v, k_new=None, v_new=None, qv=None, out_=None, cu_seqlens_q=None, cu_seqlens_k=None, cu_seqlens_k_new=None,
        seqused_q=None, seqused_k=None, max_seqlen_q=None, max_seqlen_k=None, page_table=None, kv_batch_idx=None, leftpad_k=None,
        rotary_cos=None, rotary_sin=None, seqlens_rotary=None, q_descale=None, k_descale=None, v_descale=None, softmax_scale=None,
        causal=False, window_size_left=-1, window_size_right=-1, attention_chunk=0, softcap=0.0, rotary_interleaved=True,
        scheduler_metadata=None, num_splits=1, pack_gqa=None, sm_margin=0,
    ):  # fmt: skip
        calls.append("forward")
        unused = (k_new, v_new, qv, out_, cu_seqlens_k_new, seqused_q, seqused_k, page_table, kv_batch_idx, leftpad_k)
        assert all(one is None for one in (*unused, rotary_cos, rotary_sin, seqlens_rotary, q_descale, k_descale, v_descale))
        assert isinstance(causal, bool) and isinstance(softmax_scale, float)
        out, lse = flash_forward(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, softmax_scale)
        return out, lse, torch.empty(0), torch.empty(0)

    def _flash_attn_backward(
        dout, q, k, v, out, softmax_lse, cu_seqlens_q=None, cu_seqlens_k=None, sequed_q=None, sequed_k=None, max_seqlen_q=None,
        max_seqlen_k=None, dq=None, dk=None, dv=None, softmax_scale=None, is_causal=False, window_size_left=-1, window_size_right=-1,
        softcap=0.0, deterministic=False, sm_margin=0,
    ):  # fmt: skip
        calls.append("backward")
        assert sequed_q is sequed_k is None and isinstance(is_causal, bool)
        lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        for into, grad in zip((dq, dk, dv), flash_backward(dout, q, k, v, out, softmax_lse, *lengths, is_causal, softmax_scale)):
            into.copy_(grad)
        return torch.empty(0)

    def flash_attn_func(
        q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1),
        attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0, return_attn_probs=False,
    ):  # fmt: skip
        calls.append("tiles")
        assert not causal
        return _bidirectional(q, k, v, softmax_scale)

    def flash_attn_with_kvcache(
        q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, cache_batch_idx=None,
        cache_leftpad=None, page_table=None, cu_seqlens_q=None, cu_seqlens_k_new=None, max_seqlen_q=None, rotary_seqlens=None,
        q_descale=None, k_descale=None, v_descale=None, softmax_scale=None, causal=False, window_size=(-1, -1), attention_chunk=0,
        softcap=0.0, rotary_interleaved=True, scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0,
        return_softmax_lse=False,
    ):  # fmt: skip
        calls.append("kvcache")
        assert k is v is None and not causal and return_softmax_lse and q.shape[1] == 1
        for numbers in (cache_seqlens, page_table):
            assert numbers.dtype == torch.int32 and len(numbers) == len(q)
        tables = tuple(row[: -(-int(n) // k_cache.shape[1])].numpy() for row, n in zip(page_table, cache_seqlens))
        sequences = PagedSequences(np.arange(1, len(q) + 1), tables, cache_seqlens.numpy().astype(np.int64), q.device)
        out, lse = reference.paged_forward(
            Paged(q_TND=q[:, 0], k_BSGD=k_cache, v_BSGD=v_cache, sequences=sequences, scale=softmax_scale)
        )
        return out.unsqueeze(1), lse.unsqueeze(-1), None, None

    module = ModuleType("flash_attn_interface")
    for function in (_flash_attn_forward, _flash_attn_backward, flash_attn_func, flash_attn_with_kvcache):
        setattr(module, function.__name__, function)
    return module


def interface_4(calls: list[str]) -> ModuleType:
    """flash_attn/cute/interface.py of August 2026, in the same way."""

    def _flash_attn_fwd(
        q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, seqused_q=None, seqused_k=None, max_seqlen_q=None, max_seqlen_k=None,
        min_seqlen_k=None, page_table=None, softmax_scale=None, causal=False, softcap=None, window_size_left=None,
        window_size_right=None, learnable_sink=None, tile_mn=None, mma_pv_is_rs=None, intra_wg_overlap=None, num_threads=384,
        num_splits=1, pack_gqa=None, _arch=None, score_mod=None, mask_mod=None, block_sparse_tensors=None, return_lse=False, out=None,
        lse=None, aux_tensors=None, aux_scalars=None, q_descale=None, k_descale=None, v_descale=None, gather_kv_indices=None,
        scheduler_metadata=None, seqlen_k_per_split=None, disable_scheduler_metadata=False,
    ):  # fmt: skip
        calls.append("forward")
        assert return_lse, "without gradients the log-sum-exp comes only where it is asked for"
        out, lse = flash_forward(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, softmax_scale)
        return out, lse, None, None

    def _flash_attn_bwd(
        q, k, v, out, dout, lse, softmax_scale=None, causal=False, softcap=0.0, window_size_left=None, window_size_right=None,
        m_block_size=64, n_block_size=128, num_threads=256, pack_gqa=False, num_stages_Q=2, num_stages_dO=2, SdP_swapAB=False,
        dKV_swapAB=False, dQ_swapAB=False, AtomLayoutMSdP=2, AtomLayoutNdKV=2, AtomLayoutMdQ=2, V_in_regs=False, cu_seqlens_q=None,
        cu_seqlens_k=None, seqused_q=None, seqused_k=None, max_seqlen_q=None, max_seqlen_k=None, deterministic=False, dq=None, dk=None,
        dv=None, score_mod=None, score_mod_bwd=None, mask_mod=None, aux_tensors=None, aux_scalars=None, block_sparse_tensors=None,
        dlse=None, learnable_sink=None,
    ):  # fmt: skip
        calls.append("backward")
        lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return *flash_backward(dout, q, k, v, out, lse, *lengths, causal, softmax_scale), None

    def flash_attn_func(
        q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None,
        softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, score_mod=None, score_mod_bwd=None, mask_mod=None,
        aux_tensors=None, aux_scalars=None, block_sparse_tensors=None, block_sparse_tensors_bwd=None, return_lse=False,
    ):  # fmt: skip
        calls.append("tiles")
        assert not causal
        return _bidirectional(q, k, v, softmax_scale), None

    module = ModuleType("flash_attn.cute.interface")
    for function in (_flash_attn_fwd, _flash_attn_bwd, flash_attn_func):
        setattr(module, function.__name__, function)
    return module


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Both packages with emulated kernels; returns the names of the calls."""
    calls: list[str] = []
    third, fourth, package = interface_3(calls), interface_4(calls), ModuleType("flash_attn")
    for name, module in {
        "flash_attn_interface": third,
        "flash_attn": package,
        "flash_attn.cute": ModuleType("flash_attn.cute"),
        "flash_attn.cute.interface": fourth,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)

    def version(name: str) -> str:
        if name not in NAMES:
            raise importlib.metadata.PackageNotFoundError(name)
        return NAMES[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    _forget()
    yield calls
    _forget()


def _forget() -> None:
    for backend in (flash_attn_3, flash_attn_4):
        backend._refuse_installation.cache_clear()


@pytest.mark.parametrize("segments, causal", [(FREE, False), (SQUARES, True)], ids=["free", "causal"])
@pytest.mark.parametrize("backend", [flash_attn_3, flash_attn_4])
def test_blocks_and_their_gradients(installed: list[str], backend: ModuleType, segments: np.ndarray, causal: bool) -> None:
    assert backend.refuse(heads(torch.bfloat16)) is None
    compare(backend, torch.bfloat16, 64, segments, causal)
    assert installed == ["forward", "backward"]


@pytest.mark.parametrize("backend", [flash_attn_3, flash_attn_4])
def test_the_towers_attention(installed: list[str], backend: ModuleType) -> None:
    check_bidirectional(partial(backend.tiles, scale=64**-0.5), 64, torch.bfloat16)
    assert set(installed) == {"tiles"}


@pytest.mark.parametrize("queries", [(1, 1), (1, 3)])
@pytest.mark.parametrize("backend", [flash_attn_3, flash_attn_4])
def test_cached_keys(installed: list[str], backend: ModuleType, queries: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(5)
    query, keys, values = (torch.randn(*shape, 64, generator=generator).bfloat16() for shape in ((sum(queries), 6), *[(4, 128, 2)] * 2))
    sequences = PagedSequences(np.cumsum(queries), (np.array([3, 0]), np.array([1])), np.array([133, 7]), torch.device("cpu"))
    paged = Paged(q_TND=query, k_BSGD=keys, v_BSGD=values, sequences=sequences, scale=0.2)
    for found, expected in zip(backend.paged_forward(paged), reference.paged_forward(paged)):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=2e-2)
    by_the_cache_call = backend is flash_attn_3 and queries == (1, 1)
    assert installed == ["kvcache" if by_the_cache_call else "forward"]


def on(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")


@pytest.mark.parametrize(
    ("capability", "width", "third", "fourth"),
    [
        ((8, 0), 128, "compute capability 9, GPU has 8.0", "capabilities 9, 10, 11, 12, GPU has 8.0"),
        ((9, 0), 128, None, None),
        ((9, 0), 192, None, None),
        ((10, 0), 128, "compute capability 9, GPU has 10.0", None),
        ((10, 0), 192, "compute capability 9, GPU has 10.0", "up to 128, and 256, on GPU, not 192"),
        ((10, 3), 256, "compute capability 9, GPU has 10.3", None),
        ((9, 0), 264, "multiples of 8 up to 256, not 264", "multiples of 8 up to 256, not 264"),
    ],
)
def test_devices(installed, monkeypatch, capability, width, third, fourth) -> None:  # type: ignore[no-untyped-def]
    on(capability, monkeypatch)
    asked = heads(torch.bfloat16, width=width, device="cuda:0")
    for backend, wanted in ((flash_attn_3, third), (flash_attn_4, fourth)):
        reason = backend.refuse(asked)
        assert reason is None if wanted is None else wanted in reason


def test_what_a_build_left_out_is_refused(installed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModuleType("flash_attn_config")
    config.__spec__ = importlib.machinery.ModuleSpec("flash_attn_config", None)
    monkeypatch.setitem(sys.modules, "flash_attn_config", config)
    for flags, width, dtype, wanted in (
        ((), 64, torch.float16, None),
        (("VARLEN",), 64, torch.bfloat16, "was built without varlen, which a pack of documents needs"),
        (("BACKWARD",), 64, torch.bfloat16, "was built without backward, which training needs"),
        (("FP16",), 64, torch.float16, "was built without fp16"),
        (("HDIM64", "HDIM96"), 64, torch.bfloat16, None),  # padded to the next width
        (("HDIM192", "HDIM256"), 136, torch.bfloat16, "was built without head widths of 136 or more"),
    ):
        config.CONFIG = {"build_flags": {f"FLASHATTENTION_DISABLE_{flag}": True for flag in flags}}
        assert flash_attn_3.refuse(heads(dtype, width=width)) == wanted


def test_another_interface_is_refused_by_name(installed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def _flash_attn_bwd(q, k, v, out, dout, lse, softmax_scale=None, causal=False):  # type: ignore[no-untyped-def]
        """As before packed documents were served."""

    monkeypatch.setattr(sys.modules["flash_attn.cute.interface"], "_flash_attn_bwd", _flash_attn_bwd)
    assert flash_attn_4.refuse(heads(torch.bfloat16)) == (
        "flash-attn-4 4.0.0b30 has another interface (_flash_attn_bwd without cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k); "
        "install another release"
    )
    assert flash_attn_4.refuse(heads(torch.float32)) == "takes bf16 and fp16, not torch.float32"


def test_hopper_takes_the_third_and_blackwell_the_fourth(installed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Heads(num_heads=4, width=128, dtype=torch.bfloat16, device=torch.device("cuda:0"))
    for capability, backend in (((9, 0), flash_attn_3), ((10, 0), flash_attn_4)):
        on(capability, monkeypatch)
        assert choose(asked) is backend
    monkeypatch.setitem(NAMES, "flash-attn", "2.5.0")
    monkeypatch.delitem(NAMES, "flash_attn_3")
    monkeypatch.delitem(NAMES, "flash-attn-4")
    _forget()
    assert flash_attn_3.refuse(asked) == flash_attn_4.refuse(asked) == "not installed"
