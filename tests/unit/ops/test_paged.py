"""Attention over cached keys: every backend equals plain attention over the keys laid one after the other."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from mindspeed_vita.ops.attention import Blocks, Paged, PagedSequences, reference, torch_cuda, torch_native
from mindspeed_vita.ops.attention.paged import gathered
from tests.unit.ops.emulated_cuda import EmulatedCudaKernels

SIZE = 16
TABLES = ([7], [3, 4, 5, 6, 0, 9], [1, 2], [11, 10, 8])
"""One block; a run that is read in place and two blocks apart; a short run; blocks in falling order."""
LENGTHS = (1, 90, 32, 41)
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def call(dtype: torch.dtype, queries: tuple[int, ...], *, heads: int = 6, kv_heads: int = 2, width: int = 64) -> Paged:
    generator = torch.Generator().manual_seed(3)
    query, keys, values = (
        torch.randn(*shape, width, generator=generator).to(dtype) for shape in ((sum(queries), heads), *[(12, SIZE, kv_heads)] * 2)
    )
    tables = tuple(np.array(table) for table in TABLES)
    for stored in (keys, values):  # what was never written must not be read
        for table, length in zip(tables, LENGTHS):
            if length % SIZE:
                stored[table[-1], length % SIZE :] = float("nan")
    sequences = PagedSequences(np.cumsum(queries), tables, np.array(LENGTHS), torch.device("cpu"))
    return Paged(q_TND=query, k_BSGD=keys, v_BSGD=values, sequences=sequences, scale=0.2)


def expected(paged: Paged) -> tuple[torch.Tensor, torch.Tensor]:
    """By the reference over blocks, one sequence at a time."""
    outs, lses, start = [], [], 0
    for stop, table, length in zip(paged.sequences.query_ends, TABLES, LENGTHS):
        keys, values = (torch.cat([stored[block] for block in table])[:length] for stored in (paged.k_BSGD, paged.v_BSGD))
        segments = np.array([[0, stop - start, 0, length]])
        blocks = Blocks(q_TND=paged.q_TND[start:stop], k_SGD=keys, v_SGD=values, segments=segments, causal=False, scale=paged.scale)
        out, lse = reference.blocks_forward(blocks)
        outs, lses, start = [*outs, out], [*lses, lse], stop
    return torch.cat(outs), torch.cat(lses)


def check(backend: ModuleType, paged: Paged) -> None:
    found, wanted = backend.paged_forward(paged), expected(paged)
    assert found[0].dtype == paged.q_TND.dtype and found[1].dtype == torch.float32
    for ours, theirs in zip(found, wanted):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=TOLERANCES[paged.q_TND.dtype])


@pytest.mark.parametrize("queries", [(1, 1, 1, 1), (3, 1, 20, 2)], ids=["decoding", "several"])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("backend", [reference, torch_native], ids=["reference", "torch_native"])
def test_on_a_cpu(backend: ModuleType, dtype: torch.dtype, queries: tuple[int, ...]) -> None:
    check(backend, call(dtype, queries))
    check(backend, call(dtype, queries, heads=4, kv_heads=4, width=72))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_decoding_sequence_by_sequence_equals_one_padded_call(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_native, "_LONGEST_PADDED", 0)
    check(torch_native, call(dtype, (1, 1, 1, 1)))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_torchs_cuda_kernels_over_copied_keys(dtype: torch.dtype) -> None:
    with EmulatedCudaKernels():
        check(torch_cuda, call(dtype, (3, 1, 20, 2)))


def test_long_runs_are_read_in_place() -> None:
    long, *rest = torch_native._runs(np.array(TABLES[1]), LENGTHS[1], SIZE)
    assert long == slice(3 * SIZE, 7 * SIZE) and [rows.tolist() for rows in rest] == [[*range(SIZE), *range(9 * SIZE, 9 * SIZE + 10)]]
    assert torch_native._runs(np.array(TABLES[2]), LENGTHS[2], SIZE) == [slice(SIZE, 3 * SIZE)]


def test_gathered_keys_follow_the_tables() -> None:
    paged = call(torch.float32, (1, 1, 1, 1))
    keys = gathered(paged).k_SGD
    assert torch.equal(keys[1 : 1 + SIZE], paged.k_BSGD[3]) and torch.equal(keys[-9:], paged.k_BSGD[8, :9]) and len(keys) == sum(LENGTHS)


def test_the_table_is_padded_and_moved_once() -> None:
    sequences = call(torch.float32, (1, 1, 1, 1)).sequences
    assert sequences.block_table.tolist()[0] == [7, 0, 0, 0, 0, 0] and sequences.block_table.dtype == torch.int32
    assert sequences.block_table is sequences.block_table and sequences.places == [(0, 1), (1, 2), (2, 3), (3, 4)]
