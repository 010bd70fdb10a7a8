"""What moves between ranks for cached tokens: chosen by bytes, and as many bytes as the plan says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mindspeed_vita.inference.cached_attention import CachedAttention, _merged, queries_travel
from mindspeed_vita.inference.kv_cache import KVCache, blocks_in, bytes_per_block
from mindspeed_vita.inference.plans import plan_decode, plan_prefill
from mindspeed_vita.inference.steps import BlockRef, DecodeRow, PrefillChunk
from mindspeed_vita.ops.attention import reference

SIZES: dict[str, Any] = {"heads": 40, "kv_heads": 8, "width": 128, "itemsize": 2, "size": 8}


def test_few_queries_travel_to_many_keys_and_few_keys_to_many_queries() -> None:
    assert queries_travel(queries=100, keys=1_000_000, **SIZES)
    assert not queries_travel(queries=8192, keys=8192, **SIZES)
    # one query: 40 heads of 128 bf16 numbers there, of 129 fp32 numbers back; one key and value: 2 * 8 heads of 128 bf16 numbers
    per_query, per_key = 40 * (256 + 4 * 129), 2 * 8 * 256
    assert queries_travel(queries=per_key, keys=per_query, **SIZES)
    assert not queries_travel(queries=per_key + 1, keys=per_query, **SIZES)
    assert queries_travel(queries=per_key + 1, keys=per_query, **{**SIZES, "heads": 8})


def test_partial_results_merge_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, values = torch.randn(3, 2, 9, generator=generator), torch.randn(2, 9, 4, generator=generator)
    whole = torch.einsum("tnk,nkd->tnd", scores.softmax(-1), values)
    parts = []
    for keys in (slice(0, 4), slice(4, 5), slice(5, 9)):
        out = torch.einsum("tnk,nkd->tnd", scores[..., keys].softmax(-1), values[:, keys])
        parts.append(torch.cat([out, scores[..., keys].logsumexp(-1, keepdim=True)], dim=-1))
    nothing = torch.zeros_like(parts[0])
    nothing[..., -1] = float("-inf")
    out, lse = _merged(torch.stack([nothing, *parts]))
    torch.testing.assert_close(out, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(lse, scores.logsumexp(-1), rtol=0, atol=1e-6)
    assert not _merged(torch.stack([nothing, nothing]))[0].isnan().any()


def test_the_cache_keeps_what_is_written_to_its_slots() -> None:
    cache = KVCache(
        num_layers=2, num_blocks=3, block_size=4, kv_heads=2, head_dim=8, dtype=torch.float32, device=torch.device("cpu")
    )
    keys, values = torch.randn(3, 2, 8), torch.randn(3, 2, 8)
    cache.write(1, torch.tensor([9, 0, 7]), keys, values)
    stored_keys, stored_values = cache.layer(1)
    assert torch.equal(stored_keys[2, 1], keys[0]) and torch.equal(stored_keys[0, 0], keys[1])
    assert torch.equal(stored_values[1, 3], values[2])
    assert cache.tensor.nbytes == 3 * bytes_per_block(num_layers=2, block_size=4, kv_heads=2, head_dim=8, dtype=torch.float32)


def test_memory_for_less_than_a_block_is_refused() -> None:
    assert blocks_in(1000, 300) == 3
    with pytest.raises(ValueError, match="the cache has 299 bytes, one block takes 300; give it more memory, or use a smaller block size"):
        blocks_in(299, 300)


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ValueError, match="travels='fast'; expected one of auto, queries, keys"):
        CachedAttention(SimpleNamespace(), reference, travels="fast")  # type: ignore[arg-type]


class Counted(CachedAttention):
    """One of two ranks, whose transfers are counted and bring zeros."""

    def __init__(self, travels: str) -> None:
        cache = KVCache(num_layers=1, num_blocks=8, block_size=4, kv_heads=1, head_dim=8, dtype=torch.float32, device=torch.device("cpu"))
        cache.tensor.zero_()
        super().__init__(cache, reference, rank=0, size=2, travels=travels)  # type: ignore[arg-type]
        self.sent: list[int] = []
        self.channel = self  # type: ignore[assignment]

    def swap(self, outgoing: torch.Tensor, num_incoming: int, distance: int) -> Any:
        self.sent.append(outgoing.nbytes)
        return SimpleNamespace(wait=lambda: outgoing.new_zeros(2, num_incoming, *outgoing.shape[2:]))


def _chunk() -> PrefillChunk:
    """Tokens 12 .. 18 over 12 cached ones: this rank holds 8 of those, and computes 4 of the new ones."""
    table = (BlockRef(0, 3), BlockRef(1, 0), BlockRef(0, 4), BlockRef(0, 5), BlockRef(1, 1))
    return PrefillChunk(0, 12, 18, table)


def test_pass_kv_sends_the_cached_keys_that_the_plan_counts() -> None:
    attention, plan = Counted("keys"), plan_prefill([_chunk()], rank=0, size=2, block_size=4, device=torch.device("cpu"))
    assert plan.cached is not None and plan.cached.held_keys == (8, 4) and plan.cached.per_rank == (4, 2)
    query, keys = torch.randn(5, 2, 8), torch.randn(5, 1, 8)
    attention.attend(0, query, keys, keys, plan, scale=0.3)
    assert attention.sent == [2 * 4 * 8 * 4, 2 * 8 * 8 * 4]  # its 4 new keys on the ring, then the 8 cached ones


def test_pass_q_sends_the_queries_and_partial_results_that_the_plan_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    attention, plan = Counted("queries"), plan_prefill([_chunk()], rank=0, size=2, block_size=4, device=torch.device("cpu"))
    sent: list[int] = []

    def gather(into: torch.Tensor, part: torch.Tensor, group: Any = None) -> None:
        sent.append(part.nbytes)
        into.copy_(torch.cat([part, part]))

    def exchange(rows: torch.Tensor, send: Any, recv: Any, group: Any) -> torch.Tensor:
        sent.append(rows[send[0] :].nbytes)
        return rows.new_zeros(sum(recv), *rows.shape[1:])

    monkeypatch.setattr("torch.distributed.all_gather_into_tensor", gather)
    monkeypatch.setattr("mindspeed_vita.inference.cached_attention.all_to_all", exchange)
    query, keys = torch.randn(5, 2, 8), torch.randn(5, 1, 8)
    attention.attend(0, query, keys, keys, plan, scale=0.3)
    assert sent == [4 * 2 * 8 * 4, 2 * 2 * 9 * 4]  # this rank's queries; outputs and log-sum-exps of the other's two


def test_a_row_is_written_where_its_block_is() -> None:
    table = (BlockRef(1, 0), BlockRef(0, 6))
    rows = [DecodeRow(0, 5, 9, table), DecodeRow(1, 2, 9, (BlockRef(1, 3),))]
    here, there = (plan_decode(rows, rank=rank, block_size=4, device=torch.device("cpu")) for rank in range(2))
    assert here.written.tolist() == [0] and here.slots.tolist() == [6 * 4 + 1] and here.queries.tolist() == [0]
    assert there.written.tolist() == [1] and there.slots.tolist() == [3 * 4 + 2] and there.queries.tolist() == [0, 1]
    assert here.sequences is not None and here.sequences.lengths.tolist() == [2]
    assert there.sequences is not None and there.sequences.lengths.tolist() == [4, 3]
