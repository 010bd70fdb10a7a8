"""Every backend equals the plain reference, forward and backward; the tower's attention is never causal."""

import pytest
import torch

from mindspeed_vita.ops.attention import backend_names, packed_attention, reference, tile_attention

BOUNDS = [0, 5, 6, 6, 17, 32]  # uneven, one-token and empty documents


def rows(num_tokens: int, heads: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, heads, width, generator=generator, dtype=torch.float64).float().requires_grad_()


@pytest.mark.parametrize("backend", backend_names())
@pytest.mark.parametrize("heads, kv_heads, width", [(4, 4, 64), (5, 1, 128), (6, 2, 72), (4, 2, 80)])
def test_packed_attention_equals_a_loop_over_documents(backend: str, heads: int, kv_heads: int, width: int) -> None:
    tensors = [rows(32, count, width, seed) for seed, count in enumerate((heads, kv_heads, kv_heads))]
    upstream = torch.randn(32, heads, width, generator=torch.Generator().manual_seed(9))
    out = packed_attention(*tensors, BOUNDS, backend=backend)
    grads = torch.autograd.grad(out, tensors, upstream)

    expected = []
    for start, stop in zip(BOUNDS[:-1], BOUNDS[1:]):
        mask = torch.ones(stop - start, stop - start, dtype=torch.bool).tril()
        expected.append(reference.masked(*(x[start:stop] for x in tensors), mask, width**-0.5))
    expected_out = torch.cat(expected)
    expected_grads = torch.autograd.grad(expected_out, tensors, upstream)
    torch.testing.assert_close(out, expected_out, rtol=0, atol=2e-6)
    for found, wanted in zip(grads, expected_grads):
        torch.testing.assert_close(found, wanted, rtol=0, atol=5e-6)


@pytest.mark.parametrize("backend", backend_names())
def test_tile_attention_is_bidirectional(backend: str) -> None:
    query, key, value = (torch.randn(2, 6, 3, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    out = tile_attention(query, key, value, backend=backend)
    changed = value.clone()
    changed[:, -1] += 1.0  # the last patch must be seen by the first
    moved = (tile_attention(query, key, changed, backend=backend) - out).abs().amin(dim=(0, 2, 3))
    assert (moved > 1e-4).all(), "a patch does not see the last patch: the tower's attention is causal"
    scores = torch.einsum("bqnd,bknd->bnqk", query, key) / 4.0
    torch.testing.assert_close(out, torch.einsum("bnqk,bknd->bqnd", scores.softmax(-1), value), rtol=0, atol=1e-6)


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="'flash9' is unknown; use one of"):
        packed_attention(*(torch.zeros(2, 1, 8) for _ in range(3)), [0, 2], backend="flash9")


def test_refusal_names_backend_and_reason() -> None:
    tensors = [torch.zeros(2, 1, 8, device="meta") for _ in range(3)]
    with pytest.raises(ValueError, match="torch_native: runs on cpu and cuda, not on meta"):
        packed_attention(*tensors, [0, 2], backend="torch_native")
