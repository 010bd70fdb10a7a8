"""The three heads give one loss and one gradient; masked computes logits for supervised rows only."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("megatron.core")

from mindspeed_vita.ops.cross_entropy import plain_cross_entropy
from mindspeed_vita.parallel.lm_head import LanguageHead


def inputs(num_tokens: int, supervised: float) -> tuple[torch.Tensor, ...]:
    """Hidden states, output weight, labels, weights of the loss, supervised tokens."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(num_tokens, 1, 16, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, requires_grad=True)
    labels = torch.randint(0, 50, (num_tokens,), generator=generator)
    labels[torch.rand(num_tokens, generator=generator) >= supervised] = -100
    return hidden, weight, labels, torch.rand(num_tokens, generator=generator), (labels != -100).nonzero().squeeze(1)


@pytest.mark.parametrize("mode", ["masked", "chunked", "original"])
@pytest.mark.parametrize("supervised", [0.0, 0.3, 1.0])
def test_head_equals_plain_cross_entropy(mode: str, supervised: float) -> None:
    hidden, weight, labels, *rest = inputs(37, supervised)
    losses = LanguageHead(mode=mode, chunk=5).losses(hidden, weight, labels, *rest)
    grads = torch.autograd.grad(losses.sum(), (hidden, weight))
    expected = plain_cross_entropy(hidden.squeeze(1), weight, labels.clamp_min(0)) * (labels != -100) * rest[0]
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    for found, wanted in zip(grads, torch.autograd.grad(expected.sum(), (hidden, weight))):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert (losses[labels == -100] == 0).all()


def test_masked_head_makes_logits_for_supervised_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, labels, *rest = inputs(64, 0.2)
    shapes = []
    linear = F.linear
    monkeypatch.setattr("mindspeed_vita.ops.cross_entropy.F.linear", lambda x, w: shapes.append(x.shape[0]) or linear(x, w))
    with torch.no_grad():
        LanguageHead(mode="masked", chunk=4).losses(hidden, weight, labels, *rest)
    assert sum(shapes) == int((labels != -100).sum()) and max(shapes) <= 4


def test_the_weights_gradient_is_not_accumulated_in_bf16() -> None:
    """Many chunks give a bf16 gradient that is no further from fp32's than one product's is."""
    hidden, weight, labels, *rest = inputs(512, 1.0)
    wanted = torch.autograd.grad(LanguageHead(mode="original", chunk=1).losses(hidden, weight, labels, *rest).sum(), weight)[0]
    errors = {}
    for mode, chunk in (("original", 512), ("chunked", 4)):
        rounded = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight)]
        loss = LanguageHead(mode=mode, chunk=chunk).losses(*rounded, labels, *rest).sum()
        errors[mode] = (torch.autograd.grad(loss, rounded[1])[0].float() - wanted).norm() / wanted.norm()
    assert errors["chunked"] < 1.1 * errors["original"]


def test_a_frozen_output_layer_gets_no_gradient() -> None:
    hidden, weight, labels, *rest = inputs(20, 0.5)
    frozen = weight.detach()
    wanted = torch.autograd.grad(LanguageHead(mode="masked", chunk=3).losses(hidden, weight, labels, *rest).sum(), hidden)[0]
    LanguageHead(mode="masked", chunk=3).losses(hidden, frozen, labels, *rest).sum().backward()
    torch.testing.assert_close(hidden.grad, wanted)
