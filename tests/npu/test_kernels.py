"""What scripts/npu_check.py does not cover of the fused kernels: processes, old libraries, many documents, modes. On a simulated Ascend."""

from __future__ import annotations

import pytest

from mindspeed_vita.checks.parity.pool import LayoutPool
from tests.distributed.test_held_transfers import CASES, MUTANTS

RUNS = "tests.npu.runs"
FP32 = 2e-6
"""Worst seen: 6e-7, fp32 sums in another order."""
LIMITS = {"float32": FP32, "bfloat16": 8e-3}
"""A ring's errors are relative to the largest entry. Worst seen in bf16: 4.5e-3. Rounding moves a number by up to 2.0e-3 of itself.
Each partial result is rounded, and the merged one once more."""


@pytest.mark.parametrize("width", [64, 80])
def test_statistics_in_the_order_of_an_old_cann(npus: LayoutPool, width: int) -> None:
    errors = npus.run(f"{RUNS}:old_cann", width=width)[0]
    assert len(errors) == 10 and all(error < FP32 for error in errors.values()), errors


def test_more_documents_than_one_call_takes(npus: LayoutPool) -> None:
    errors, sequences = npus.run(f"{RUNS}:many_documents", count=2100)[0]
    assert max(errors) < FP32
    assert sequences == [1024, 1024, 52]


@pytest.mark.parametrize(("cp", "ulysses"), [(2, 1), (4, 1), (4, 2)])
@pytest.mark.parametrize("bounds", [[0, 96], [0, 37, 38, 80, 91, 96]], ids=["one-document", "packed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_ring_over_processes(npus: LayoutPool, cp: int, ulysses: int, bounds: list[int], dtype: str) -> None:
    """Forward and backward against plain attention in fp64 on the same rounded tensors; transfers are held back until waited for."""
    arguments = {"bounds": bounds, "width": 64, "dtype": dtype, "parallel": {"ulysses": ulysses}}
    ranks = npus.run("tests.distributed.transfer_runs:run", cp=cp, what="attention", arguments=arguments)
    errors = ranks[0][0]
    assert set(errors) == {"out", "dq", "dk", "dv"}
    assert all(error < LIMITS[dtype] for error in errors.values()), errors
    assert all(started and not forgotten for _, started, forgotten, _ in ranks)


def test_a_bf16_ring_that_reads_too_early_shows(npus: LayoutPool) -> None:
    case, *mutation = MUTANTS["gradients on their way back"]
    arguments = {**CASES[case][2], "width": 64, "dtype": "bfloat16"}
    ranks = npus.run("tests.distributed.transfer_runs:run", cp=4, what="attention", arguments=arguments, mutation=tuple(mutation))
    assert ranks[0][0]["dk"] == float("inf") and all(forgotten for _, _, forgotten, _ in ranks)


def test_each_device_has_random_numbers_of_its_own(npus: LayoutPool) -> None:
    assert npus.run(f"{RUNS}:random_numbers")[0] == {"varies": True, "repeats": True, "leaves the host's alone": True}


def test_what_the_kernels_do_not_take_is_refused(npus: LayoutPool) -> None:
    assert npus.run(f"{RUNS}:refusals")[0] == [
        "no attention backend can serve 2 heads of width 64 in torch.float64 on npu:0: npu: takes bf16, fp16 and fp32, not torch.float64",
        "no attention backend can serve 2 heads of width 769 in torch.float32 on npu:0: "
        "npu: takes up to 256 heads of widths up to 768, not 2 of 769",
        "no attention backend can serve 257 heads of width 64 in torch.float32 on npu:0: "
        "npu: takes up to 256 heads of widths up to 768, not 257 of 64",
        "swiglu: plain torch on npu, which is slower; the fused kernel takes bf16, fp16 and fp32, not torch.float64\n",
    ]
