"""The tower's attention: every backend that runs here is bidirectional and equals plain math, forward and backward."""

import pytest
import torch

from mindspeed_vita.ops.attention import backend_names, tile_attention


@pytest.mark.parametrize("backend", backend_names("cpu"))
@pytest.mark.parametrize("width", [16, 64, 72, 80, 128])
def test_tile_attention_is_bidirectional(backend: str, width: int) -> None:
    tensors = [torch.randn(2, 6, 3, width, generator=torch.Generator().manual_seed(seed)).requires_grad_() for seed in range(4)]
    query, key, value, upstream = tensors
    out = tile_attention(query, key, value, backend=backend)
    changed = value.detach().clone()
    changed[:, -1] += 1.0  # the last patch must be seen by the first
    moved = (tile_attention(query, key, changed, backend=backend) - out).abs().amin(dim=(0, 2, 3))
    assert (moved > 1e-4).all(), "a patch does not see the last patch: the tower's attention is causal"
    scores = torch.einsum("bqnd,bknd->bnqk", query, key) * width**-0.5
    expected = torch.einsum("bnqk,bknd->bqnd", scores.softmax(-1), value)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
    for found, wanted in zip(torch.autograd.grad(out, tensors[:3], upstream), torch.autograd.grad(expected, tensors[:3], upstream)):
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)
