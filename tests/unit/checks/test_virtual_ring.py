"""Ring attention over any documents and ring size equals the plain reference, forward and backward."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_vita.checks.virtual_ring import virtual_ring_attention
from mindspeed_vita.ops.attention import reference
from mindspeed_vita.sharding import CPPlan, make_cp_plan


def expected(tensors: list[torch.Tensor], grad: torch.Tensor, cp_plan: CPPlan, scale: float) -> tuple[torch.Tensor, ...]:
    leaves = [x.double().requires_grad_() for x in tensors]
    bounds = torch.from_numpy(cp_plan.piece_bounds)
    position = torch.arange(cp_plan.num_tokens)
    document = torch.searchsorted(bounds, position, right=True)
    mask = (document[:, None] == document[None, :]) & (position[:, None] >= position[None, :])
    group = tensors[0].shape[1] // tensors[1].shape[1]
    keys, values = (x.repeat_interleave(group, dim=1) for x in leaves[1:])
    scores = torch.einsum("tnd,snd->nts", leaves[0], keys) * scale
    out = torch.einsum("nts,snd->tnd", scores.masked_fill(~mask, float("-inf")).softmax(-1), values)
    return out.detach(), *torch.autograd.grad(out, leaves, grad.double())


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_ring_of_any_size_equals_plain_attention(data: st.DataObject) -> None:
    cp_size = data.draw(st.integers(1, 8))
    num_tokens = 2 * cp_size * data.draw(st.integers(1, 8))
    bounds = np.array(sorted([0, num_tokens, *data.draw(st.lists(st.integers(0, num_tokens), max_size=8))]))
    cp_plan = make_cp_plan(bounds, cp_size, padding=int(bounds[-1] - bounds[-2]) if data.draw(st.booleans()) else 0)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    tensors = [torch.randn(num_tokens, heads, 8, generator=generator) for heads in (4, 2, 2)]
    grad = torch.randn(num_tokens, 4, 8, generator=generator)
    found = virtual_ring_attention(*tensors, grad, cp_plan, scale=0.3)
    for ours, wanted in zip(found, expected(tensors, grad, cp_plan, 0.3)):
        torch.testing.assert_close(ours.double(), wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("backend", [None, reference], ids=["fused", "reference"])
def test_the_error_in_bf16_stays_near_one_devices_however_long_the_ring(backend: object) -> None:
    """Partial results merge in fp32, but each was rounded by its kernel: the error grows towards the root of 2, not with the ring."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(512, heads, 64, generator=generator).bfloat16() for heads in (4, 1, 1)]
    grad = torch.randn(512, 4, 64, generator=generator).bfloat16()
    errors = {}
    for cp_size in (1, 2, 8, 32):
        cp_plan = make_cp_plan(np.array([0, 512]), cp_size)
        found = virtual_ring_attention(*tensors, grad, cp_plan, scale=0.125, backend=backend)  # type: ignore[arg-type]
        wanted = expected([x.double() for x in tensors], grad, cp_plan, 0.125)
        errors[cp_size] = [float((ours.double() - want).norm() / want.norm()) for ours, want in zip(found, wanted)]
    assert all(ring <= 1.5 * alone for size in (2, 8, 32) for ring, alone in zip(errors[size], errors[1])), errors
    assert all(ring <= 1.3 * short for ring, short in zip(errors[32], errors[2])), errors


@pytest.mark.parametrize("cp_size", [2, 8, 32])
def test_gradients_that_travel_in_bf16_add_a_rounding_of_bf16_each(cp_size: int) -> None:
    """Against fp64. Output and dq do not change. dk and dv are sums, in fp32, of parts that were each rounded once."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(512, heads, 64, generator=generator) for heads in (4, 1, 1)]
    grad, cp_plan = torch.randn(512, 4, 64, generator=generator), make_cp_plan(np.array([0, 512]), cp_size)
    wanted = expected(tensors, grad, cp_plan, 0.125)

    def errors(gradients: torch.dtype) -> list[float]:
        found = virtual_ring_attention(*tensors, grad, cp_plan, scale=0.125, gradients=gradients)
        return [float((ours.double() - want).norm() / want.norm()) for ours, want in zip(found, wanted)]

    exact, rounded = errors(torch.float32), errors(torch.bfloat16)
    assert rounded[:2] == exact[:2]
    step = 2.0**-8  # of bf16: the most that one rounding is off, relative to the number
    assert all(error < 1e-5 for error in exact), exact
    assert all(1e-5 < error < step for error in rounded[2:]), rounded
