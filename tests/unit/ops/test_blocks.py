"""Block kernels with log-sum-exp: every backend equals the plain reference, and merged blocks equal attention in one piece."""

import socket
from dataclasses import replace

import numpy as np
import pytest
import torch

from mindspeed_vita.ops import say_once
from mindspeed_vita.ops.attention import Blocks, Heads, Upstream, blocks, choose, reference, torch_native
from mindspeed_vita.ops.attention.blocks import on_device, segment_rows

ONE_HEAD = Heads(num_heads=1, width=8, dtype=torch.float32, device=torch.device("cpu"))


def tensors(heads: int, kv_heads: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    shapes = [(20, heads), (31, kv_heads), (31, kv_heads), (20, heads)]
    return tuple(torch.randn(*shape, width, generator=generator).to(dtype) for shape in shapes)


@pytest.mark.parametrize("width", [64, 72, 80, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("takes_groups", [torch_native._TAKES_GROUPS, False])
def test_merged_blocks_equal_attention_in_one_piece(
    width: int, dtype: torch.dtype, takes_groups: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_native, "_TAKES_GROUPS", takes_groups)  # older torch reads no groups of query heads
    query, key, value, grad = tensors(6, 2, width, dtype)
    # rows 3..20 look at keys 0..12 in one block and at 12..31 in another; unequal lengths, one of them a single row
    first, second = np.array([[3, 4, 0, 12], [4, 20, 0, 12]]), np.array([[3, 20, 12, 31]])
    kernels, scale = choose(Heads.of(query)), width**-0.5
    out, lse = torch.zeros(20, 6, width), torch.full((20, 6), float("-inf"))
    calls = [Blocks(q_TND=query, k_SGD=key, v_SGD=value, segments=part, causal=False, scale=scale) for part in (first, second)]
    for call, segments in zip(calls, (first, second)):
        partial = kernels.blocks_forward(call)
        kernels.merge_(out, lse, segment_rows(segments, query.device), *partial)
    wanted = [x.float().requires_grad_() for x in (query, key, value)]
    expected = reference.masked(*wanted, torch.ones(20, 31, dtype=torch.bool), scale)
    tolerance = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(out[3:], expected[3:], rtol=0, atol=tolerance)

    dq, dkv = torch.zeros(20, 6, width), torch.zeros(2, 31, 2, width)
    for call in calls:
        kernels.blocks_backward(call, Upstream(grad_TND=grad, out_TND=out.to(dtype), lse_TN=lse), dq_TND=dq, dkv_2SGD=dkv)
    expected_grads = torch.autograd.grad(expected[3:], wanted, grad[3:].float())
    for found, want in zip((dq, dkv[0], dkv[1]), expected_grads):
        assert float((found - want).detach().abs().max() / want.detach().abs().max()) < 4 * tolerance


@pytest.mark.parametrize("name", ["torch_native", "reference"])
def test_causal_blocks_are_causal_from_the_diagonal(name: str) -> None:
    query, key, value, _ = tensors(4, 4, 16, torch.float32)
    segments = np.array([[0, 7, 0, 7], [7, 8, 7, 8], [8, 20, 8, 20]])
    call = Blocks(q_TND=query, k_SGD=key[:20], v_SGD=value[:20], segments=segments, causal=True, scale=0.25)
    out, lse = choose(Heads.of(query), name).blocks_forward(call)
    for start, stop in segments[:, :2]:
        mask = torch.ones(stop - start, stop - start, dtype=torch.bool).tril()
        wanted = reference.masked(query[start:stop], key[start:stop], value[start:stop], mask, 0.25)
        torch.testing.assert_close(out[start:stop], wanted, rtol=0, atol=2e-6)
    assert lse.dtype == torch.float32


def test_refusals_name_every_reason() -> None:
    with pytest.raises(ValueError, match="'flash9' is unknown; use one of flash_attn_3, "):
        choose(ONE_HEAD, "flash9")
    with pytest.raises(ValueError, match="torch_native: runs on cpu, not on meta"):
        choose(replace(ONE_HEAD, device=torch.device("meta")), "torch_native")
    with pytest.raises(ValueError, match="torch_cuda: runs on cuda, not on cpu"):
        choose(ONE_HEAD, "torch_cuda")


def test_the_choice_is_printed_once_with_the_reasons_of_those_that_refused(monkeypatch, capsys) -> None:
    monkeypatch.setattr(say_once, "_said", set())
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert choose(ONE_HEAD) is choose(ONE_HEAD) and choose(ONE_HEAD).__name__.endswith("torch_native")
    assert capsys.readouterr().err == "attention of packs: torch_native\n"
    monkeypatch.setattr("mindspeed_vita.ops.attention.torch_native.refuse", lambda heads: "too slow today")
    assert choose(ONE_HEAD) is reference
    assert capsys.readouterr().err == "attention of packs: reference, slower than what refused (torch_native: too slow today)\n"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    choose(ONE_HEAD, what="tiles")
    assert capsys.readouterr().err == "", "one rank speaks for its host"
    say_once._said.clear()
    monkeypatch.setenv("RANK", "8")
    monkeypatch.setenv("LOCAL_RANK", "0")
    choose(ONE_HEAD, what="tiles")
    assert capsys.readouterr().err.startswith(f"{socket.gethostname()}: attention of tiles: reference, slower"), "each host for itself"


def test_what_is_kept_for_an_array_goes_with_it() -> None:
    array, meta = np.arange(3), torch.device("meta")
    assert on_device(array, meta) is on_device(array, meta)
    kept = {key for key in blocks._kept if key[0] == id(array)}
    assert len(kept) == 1
    del array
    assert not kept & set(blocks._kept)


def test_rows_of_one_stretch_are_a_view() -> None:
    cpu = torch.device("cpu")
    assert segment_rows(np.array([[2, 5, 0, 1], [5, 6, 0, 1]]), cpu) == slice(2, 6)
    rows = segment_rows(np.array([[2, 4, 0, 1], [5, 6, 0, 1]]), cpu)
    assert isinstance(rows, torch.Tensor) and rows.tolist() == [2, 3, 5]
