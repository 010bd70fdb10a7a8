"""Results that are made again: the same gradients, less memory, each part computed as often as it must be."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F

from mindspeed_vita.models.made_again import made_again, not_saved

SIZE = 8


def parts(needs_grad: bool = True):
    generator = torch.Generator().manual_seed(3)
    source, first, second = (torch.randn(SIZE, SIZE, generator=generator) for _ in range(3))
    return source.requires_grad_(needs_grad), first.requires_grad_(), second.requires_grad_()


def run(source: torch.Tensor, first: torch.Tensor, second: torch.Tensor, again: bool, calls: list[str]) -> torch.Tensor:
    def make(x: torch.Tensor) -> torch.Tensor:
        calls.append("made")
        return torch.tanh(x @ first)

    result = made_again(make, source) if again else make(source)
    with not_saved(result):
        return F.linear(result[None], second).square().sum()


def test_gradients_have_the_same_bits_and_the_result_is_made_twice():
    found = []
    for again in (False, True):
        tensors, calls = parts(), []
        run(*tensors, again, calls).backward()
        found.append([tensor.grad for tensor in tensors])
        assert len(calls) == 1 + again
    assert all(torch.equal(kept, made) for kept, made in zip(*found, strict=True))


def test_only_the_source_is_kept_and_the_backward_pass_frees_it():
    tensors = parts()
    source = tensors[0] * 1
    made: list[weakref.ref] = []

    def make(x: torch.Tensor) -> torch.Tensor:
        result = torch.tanh(x @ tensors[1])
        made.append(weakref.ref(result.untyped_storage()))
        return result

    result = made_again(make, source)
    with not_saved(result):
        loss = F.linear(result, tensors[2]).square().sum()
    source_of = weakref.ref(source.untyped_storage())
    del result, source
    gc.collect()
    assert made[0]() is None and source_of() is not None
    loss.backward()
    gc.collect()
    assert len(made) == 2 and made[1]() is None and source_of() is None


def test_a_frozen_consumer_and_a_second_backward_pass():
    source, first, second = parts()
    calls: list[str] = []
    loss = run(source, first, second.requires_grad_(False), True, calls)
    loss.backward(retain_graph=True)
    assert source.grad is not None and second.grad is None and len(calls) == 2
    with pytest.raises(RuntimeError, match="a second backward pass over a graph whose results were made again"):
        loss.backward()
