"""Supervised rows come in few numbers on an NPU, and the rows that were added change neither loss nor gradient."""

from __future__ import annotations

import pytest
import torch

from mindspeed_vita.ops.shape_buckets import ROWS, bucketed_rows
from mindspeed_vita.parallel.lm_head import LanguageHead

CPU, NPU = "cpu", "npu"


def wanted(number: int, total: int) -> torch.Tensor:
    mask = torch.zeros(total, dtype=torch.bool)
    mask[torch.randperm(total, generator=torch.Generator().manual_seed(number))[:number]] = True
    return mask


@pytest.mark.parametrize(
    ("number", "total", "length"),
    [(0, 900, 0), (1, 900, 256), (255, 900, 256), (256, 900, 256), (257, 900, 512), (800, 900, 900), (900, 900, 900), (3, 5, 5)],
)
def test_an_npu_gets_a_multiple_or_all_rows(number: int, total: int, length: int) -> None:
    mask = wanted(number, total)
    rows = bucketed_rows(mask, NPU)
    assert len(rows) == length and len(rows.unique()) == length
    assert torch.equal(rows[:number], mask.nonzero().squeeze(1)) and not mask[rows[number:]].any()


def test_packs_of_every_kind_have_few_lengths() -> None:
    lengths = {len(bucketed_rows(wanted(number, 2048), NPU)) for number in range(2049)}
    assert len(lengths) == 2048 // ROWS + 1


def test_other_devices_get_the_wanted_rows_alone() -> None:
    mask = wanted(7, 900)
    for device in (CPU, "cuda"):
        assert torch.equal(bucketed_rows(mask, device), mask.nonzero().squeeze(1))


def test_added_rows_change_nothing() -> None:
    """Worst seen: 1.2e-6; sums in another order, because the backward pass cuts the vocabulary by the number of rows."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(900, 1, 16, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, requires_grad=True)
    mask = wanted(301, 900)
    labels = torch.randint(0, 50, (900,), generator=generator).masked_fill(~mask, -100)
    factors = torch.rand(900, generator=generator)
    results = []
    for device in (CPU, NPU):
        losses = LanguageHead(mode="masked", chunk=128).losses(hidden, weight, labels, factors, bucketed_rows(mask, device))
        results.append((losses, *torch.autograd.grad(losses.sum(), (hidden, weight))))
    for plain, bucketed in zip(*results):
        torch.testing.assert_close(bucketed, plain, rtol=1e-5, atol=5e-6)
    assert torch.equal(results[0][0][~mask], results[1][0][~mask]) and not results[1][1][~mask].any()
