"""A plan's segments and diagonals cover exactly the pairs that a brute-force mask allows, each once, with keys that really arrive."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_vita.sharding import CPPlan, index, make_cp_plan
from mindspeed_vita.sharding.cp_plan import chunk_work, rank_work
from mindspeed_vita.sharding.ring_steps import key_traffic


def brute_force_mask(bounds: np.ndarray) -> np.ndarray:
    position = np.arange(bounds[-1])
    document = np.searchsorted(bounds, position, side="right")
    return (document[:, None] == document[None, :]) & (position[:, None] >= position[None, :])


def pairs_of_plan(cp_plan: CPPlan) -> np.ndarray:
    """How often the steps of all ranks compute each (query, key) pair of the pack."""
    count = np.zeros((cp_plan.num_tokens, cp_plan.num_tokens), dtype=int)
    own = [index(cp_plan, rank) for rank in range(cp_plan.cp_size)]
    for rank in range(cp_plan.cp_size):
        steps = cp_plan.steps(rank)
        assert steps.diagonal[0] == 0 and steps.diagonal[-1] == len(own[rank])
        for start, stop in zip(steps.diagonal[:-1], steps.diagonal[1:]):
            queries = own[rank][start:stop]
            count[np.ix_(queries, queries)] += np.tril(np.ones((stop - start, stop - start), dtype=int))
        size = cp_plan.node_size or cp_plan.ring_size
        for number, held in enumerate(steps.rounds):
            for distance, step in enumerate(held.ring):
                source = rank // size * size + (rank - distance) % size
                received = held_keys(cp_plan, source, number)[cp_plan.steps(source).rounds[number].ring[distance].send]
                assert len(received) == step.num_received
                for query_start, query_stop, key_start, key_stop in step.segments:
                    count[np.ix_(own[rank][query_start:query_stop], received[key_start:key_stop])] += 1
    return count


def held_keys(cp_plan: CPPlan, rank: int, number: int) -> np.ndarray:
    """Pack positions of the keys that a rank holds in a round; they are sent by its partner in another node."""
    size = cp_plan.node_size or cp_plan.ring_size
    owner = (rank - number * size) % cp_plan.ring_size
    own = index(cp_plan, owner)
    held = own[cp_plan.steps(owner).rounds[number].send] if number else own
    assert len(held) == cp_plan.steps(rank).rounds[number].num_held
    return held


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_steps_compute_every_allowed_pair_once(data: st.DataObject) -> None:
    cp_size = data.draw(st.integers(1, 8))
    num_tokens = 2 * cp_size * data.draw(st.integers(1, 6))
    cuts = data.draw(st.lists(st.integers(0, num_tokens), max_size=12))
    bounds = np.array(sorted([0, num_tokens, *cuts]))
    padding = int(bounds[-1] - bounds[-2]) if data.draw(st.booleans()) else 0
    cp_plan = make_cp_plan(bounds, cp_size, data.draw(st.none() | st.integers(1, num_tokens)), padding=padding)
    node_size = data.draw(st.sampled_from([size for size in range(1, cp_size + 1) if cp_size % size == 0]))
    by_node = make_cp_plan(bounds, cp_size, data.draw(st.none() | st.integers(1, num_tokens)), padding=padding, node_size=node_size)
    mask = brute_force_mask(cp_plan.piece_bounds)
    content = num_tokens - padding
    np.testing.assert_array_equal(mask[:content], brute_force_mask(bounds)[:content])
    np.testing.assert_array_equal(pairs_of_plan(cp_plan), mask.astype(int))
    np.testing.assert_array_equal(pairs_of_plan(by_node), mask.astype(int))
    assert {len(index(by_node, rank)) for rank in range(cp_size)} == {num_tokens // cp_size}
    ring = [step for rank in range(cp_size) for step in cp_plan.steps(rank).ring[1:]]
    reads = sum(int(np.diff(step.segments[:, 2:]).sum()) for rank in range(cp_size) for step in cp_plan.steps(rank).ring)
    traffic = key_traffic(cp_plan.piece_bounds, cp_plan.owners, cp_plan.edges, cp_size)
    assert traffic == (sum(step.num_received for step in ring), reads)
    np.testing.assert_array_equal(rank_work(cp_plan), [mask[index(cp_plan, rank)].sum() for rank in range(cp_size)])


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    chunk=st.integers(1, 5),
)
def test_chunk_work_counts_pairs(lengths: list[int], chunk: int) -> None:
    total = -(-sum(lengths) // chunk) * chunk
    bounds = np.unique(np.concatenate([[0], np.cumsum(lengths), [total]]))
    edges = np.arange(0, total + 1, chunk)
    np.testing.assert_array_equal(chunk_work(bounds, edges), brute_force_mask(bounds).sum(1).reshape(-1, chunk).sum(1))


def test_padding_does_not_turn_one_document_into_several() -> None:
    one = make_cp_plan(np.array([0, 1020, 1024]), 4, padding=4)
    assert one.owners.tolist() == [0, 1, 2, 3, 3, 2, 1, 0]
    assert make_cp_plan(np.array([0, 1020, 1024]), 4).owners.tolist() != one.owners.tolist()


def test_long_padding_is_evened_out_and_cut_into_pieces() -> None:
    cp_plan = make_cp_plan(np.array([0, 10_000, 16_384]), 4, padding=6_384)
    assert np.diff(cp_plan.piece_bounds)[1:].max() == 512
    work = rank_work(cp_plan)
    assert work.max() / work.mean() < 1.1


def test_documents_aligned_to_ranks_send_nothing() -> None:
    cp_plan = make_cp_plan(np.arange(0, 65) * 1024, 4)
    for rank in range(4):
        steps = cp_plan.steps(rank)
        assert sum(step.num_received for step in steps.ring[1:]) == 0
        assert all(len(step.segments) == 0 for step in steps.ring)


def test_one_document_needs_every_earlier_key() -> None:
    steps = [make_cp_plan(np.array([0, 64]), 4).steps(rank) for rank in range(4)]
    # the owner of the last chunk, rank 0, sees all keys of the others
    assert [step.num_received for step in steps[0].ring[1:]] == [16, 16, 16]


@pytest.mark.parametrize("cp_size", [8, 32])
def test_a_million_tokens_are_evened_out(cp_size: int) -> None:
    rng = np.random.default_rng(0)
    bounds = np.unique(np.concatenate([[0, 2**20], rng.integers(0, 2**20, 300)]))
    started = time.perf_counter()
    cp_plan = make_cp_plan(bounds, cp_size)
    print(f"planned in {time.perf_counter() - started:.3f} s")
    work = rank_work(cp_plan)
    assert work.max() / work.mean() < 1.05


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_key_crosses_the_border_of_a_node_once_and_only_if_a_rank_there_needs_it(data: st.DataObject) -> None:
    node_size, num_nodes = data.draw(st.integers(2, 4)), data.draw(st.integers(2, 4))
    size = node_size * num_nodes
    num_tokens = 2 * size * data.draw(st.integers(1, 6))
    bounds = np.array(sorted([0, num_tokens, *data.draw(st.lists(st.integers(0, num_tokens), max_size=12))]))
    direct = make_cp_plan(bounds, size)
    by_node = direct.by_node(node_size)
    for rank in range(size):
        for number, held in enumerate(by_node.steps(rank).rounds[1:], 1):
            node = (rank // node_size + number) % num_nodes
            there = range(node * node_size, (node + 1) * node_size)
            needed = [direct.steps(rank).ring[(other - rank) % size].send for other in there]
            np.testing.assert_array_equal(held.send, np.unique(np.concatenate(needed)))


def test_nodes_that_do_not_fill_the_ring_are_refused() -> None:
    cp_plan = make_cp_plan(np.array([0, 64]), 4)
    with pytest.raises(ValueError, match="nodes of 3 ring ranks do not fill a ring of 4; use a divisor"):
        cp_plan.by_node(3)
    assert cp_plan.by_node(1) is cp_plan is cp_plan.by_node(4)
    assert cp_plan.by_node(2).by_node(0).node_size == 0
