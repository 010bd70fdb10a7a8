"""The fused kernels as ops/ calls them, on a simulated Ascend, against plain math: forward and backward."""

from __future__ import annotations

import pytest

from mindspeed_vita.engine.parity.pool import LayoutPool

RUNS = "tests.npu.runs"
FP32 = 2e-6
"""Worst seen: 8e-7, fp32 sums in another order."""
BF16 = 1.5e-2
"""Worst seen: 8e-3, a bit or two of bf16's eight."""


@pytest.mark.parametrize("width", [64, 80, 128])
@pytest.mark.parametrize("old_cann", [False, True], ids=["TND-statistics", "NTD-statistics"])
def test_blocks_of_a_ring(npus: LayoutPool, width: int, old_cann: bool) -> None:
    errors = npus.run(f"{RUNS}:virtual_rings", width=width, old_cann=old_cann)[0]
    assert all(error < FP32 for case in errors.values() for error in case), errors


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_blocks_of_a_ring_in_low_precision(npus: LayoutPool, dtype: str) -> None:
    errors = npus.run(f"{RUNS}:virtual_rings", width=64, dtype=dtype)[0]
    assert all(error < BF16 for case in errors.values() for error in case), errors


@pytest.mark.parametrize("width", [16, 64])
def test_the_towers_attention(npus: LayoutPool, width: int) -> None:
    assert max(npus.run(f"{RUNS}:tower", width=width)[0]) < FP32


def test_more_documents_than_one_call_takes(npus: LayoutPool) -> None:
    errors, sequences = npus.run(f"{RUNS}:many_documents", count=2100)[0]
    assert max(errors) < FP32
    assert sequences == [1024, 1024, 52]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", FP32), ("bfloat16", BF16)])
def test_what_is_done_with_each_token(npus: LayoutPool, dtype: str, tolerance: float) -> None:
    errors = npus.run(f"{RUNS}:tokenwise", dtype=dtype)[0]
    assert set(errors) == {"rms_norm", "swiglu", "apply_rotary"}
    assert all(error < tolerance for case in errors.values() for error in case), errors


@pytest.mark.parametrize("cp", [2, 4])
@pytest.mark.parametrize("bounds", [[0, 96], [0, 37, 38, 80, 91, 96]], ids=["one-document", "packed"])
def test_a_ring_over_processes(npus: LayoutPool, cp: int, bounds: list[int]) -> None:
    errors = npus.run(f"{RUNS}:ring", cp=cp, bounds=bounds, width=64)[0]
    assert set(errors) == {"out", "dq", "dk", "dv"}
    assert all(error < FP32 for error in errors.values()), errors


def test_every_call_has_the_mask_and_mode_it_needs(npus: LayoutPool) -> None:
    calls = npus.run(f"{RUNS}:calls_of", case="virtual_rings", arguments={"width": 64})[0]
    attention = [arguments for name, arguments in calls if name.startswith("npu_fusion_attention")]
    modes = {(arguments["sparse_mode"], arguments["atten_mask"] and arguments["atten_mask"][0]) for arguments in attention}
    assert modes == {(3, (2048, 2048)), (0, None)}, "diagonals are causal from the bottom right, everything else has no mask"
    assert {name for name, _ in calls} == {"npu_fusion_attention", "npu_fusion_attention_grad", "npu_ring_attention_update"}


def test_a_tile_is_seen_whole(npus: LayoutPool) -> None:
    calls = npus.run(f"{RUNS}:calls_of", case="tower", arguments={"width": 64})[0]
    found = [(arguments["input_layout"], arguments["sparse_mode"], arguments["atten_mask"]) for _, arguments in calls]
    assert found == [("BSND", 0, None)] * 2
