"""Names of blocks: equal content gives equal names, and anything that keys and values depend on gives others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_vita.inference.block_names import BlockNames, TileSpan, root_name, settings_text, tile_digest

ROOT = root_name("weights 1")
SIZE = 4


def names(tokens: list[int], tiles: tuple[TileSpan, ...] = (), root: bytes = ROOT) -> list[bytes]:
    return BlockNames(root, tokens, tiles, SIZE).names


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, 4, 4), dtype=np.uint8)


@settings(max_examples=100, deadline=None)
@given(first=st.lists(st.integers(0, 3), max_size=14), second=st.lists(st.integers(0, 3), max_size=14))
def test_two_sequences_share_the_names_of_the_blocks_up_to_their_first_difference(first: list[int], second: list[int]):
    one, other = names(first), names(second)
    assert (len(one), len(other)) == (len(first) // SIZE, len(second) // SIZE)
    for block in range(min(len(one), len(other))):
        same = first[: (block + 1) * SIZE] == second[: (block + 1) * SIZE]
        assert (one[block] == other[block]) is same
    assert len({*one}) == len(one)


@settings(max_examples=50, deadline=None)
@given(tokens=st.lists(st.integers(0, 9), max_size=20), cuts=st.lists(st.integers(0, 20), max_size=4), tile=st.integers(0, 16))
def test_a_sequence_that_grows_has_the_names_of_the_whole(tokens: list[int], cuts: list[int], tile: int):
    spans = (TileSpan(tile, tile + 3, b"t" * 32),) if tile + 3 <= len(tokens) else ()
    edges = [max(tile + 3, 0) if spans else 0, *sorted(cuts), len(tokens)]
    edges = [min(max(edge, edges[0]), len(tokens)) for edge in edges]
    grown = BlockNames(ROOT, tokens[: edges[0]], spans, SIZE)
    for start, stop in zip(edges, edges[1:]):
        grown.extend(tokens[start:stop])
    assert grown.names == names(tokens, spans)


@settings(max_examples=100, deadline=None)
@given(
    starts=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    known=st.lists(st.booleans(), min_size=5, max_size=5),
    order=st.permutations(range(5)),
    more=st.integers(0, 9),
)
def test_tiles_that_are_learnt_later_give_the_names_of_those_that_were_known(
    starts: list[int], known: list[bool], order: list[int], more: int
):
    """Until then no block with an unknown tile has a name, nor any behind it."""
    spans, at = [], 0
    for number, gap in enumerate(starts):
        spans.append(TileSpan(at + gap, at + gap + 3, bytes([number]) * 32))
        at += gap + 3
    tokens, extra = list(range(at)), [7] * more
    wanted = names(tokens, tuple(spans))
    learning = BlockNames(ROOT, tokens, [span if held else replace(span, digest=None) for span, held in zip(spans, known)], SIZE)
    unknown = {number for number, held in zip(range(len(spans)), known) if not held}
    for number in [None, *order]:
        if number in unknown:
            learning.learn({number: bytes([number]) * 32})
            unknown.discard(number)
        first = min((spans[left].start for left in unknown), default=at)
        assert learning.names == wanted[: first // SIZE]
    learning.extend(extra)
    assert learning.names == names([*tokens, *extra], tuple(spans))


@settings(max_examples=100, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 1), min_size=12, max_size=16),
    start=st.integers(0, 10),
    size=st.integers(1, 6),
    other=st.sampled_from(["pixels", "settings", "shape", "type"]),
)
def test_equal_ids_with_other_pixels_never_share_a_block(tokens: list[int], start: int, size: int, other: str):
    stop = min(start + size, len(tokens))
    one = pixels(0)
    changed = {
        "pixels": (pixels(1), "s"),
        "settings": (one, "t"),
        "shape": (one.reshape(3, 2, 8), "s"),
        "type": (one.view(np.int8), "s"),
    }[other]
    first = names(tokens, (TileSpan(start, stop, tile_digest(one, "s")),))
    second = names(tokens, (TileSpan(start, stop, tile_digest(*changed)),))
    untouched = start // SIZE
    assert first[:untouched] == second[:untouched]
    assert not {*first[untouched:]} & {*second}
    assert first == names(tokens, (TileSpan(start, stop, tile_digest(one.copy(order="F"), "s")),))
    assert not {*first[untouched:]} & {*names(tokens)}, "a block with a tile must not be taken for one of plain text"


def test_the_same_tile_at_another_place_gives_other_names():
    tokens, digest = [7] * 8, tile_digest(pixels(0), "")
    places = [[(0, 4)], [(1, 5)], [(0, 2), (2, 4)], [(0, 3)]]
    found = [names(tokens, tuple(TileSpan(start, stop, digest) for start, stop in spans))[0] for spans in places]
    assert len({*found}) == len(places)


def test_a_later_part_of_a_tile_is_not_its_first_part():
    digest = tile_digest(pixels(0), "")
    whole = names([7] * 8, (TileSpan(0, 8, digest),))
    two = names([7] * 8, (TileSpan(0, 4, digest), TileSpan(4, 8, digest)))
    assert whole[0] == two[0] and whole[1] != two[1]
    short = names([7] * 8, (TileSpan(0, 4, digest),))
    assert whole[0] == short[0] and whole[1] != short[1], "text after a short tile is not the rest of a long one"


def test_another_model_shares_nothing():
    assert not {*names([1] * 8)} & {*names([1] * 8, root=root_name("weights 2"))}


def test_settings_have_one_text_in_any_order():
    assert settings_text({"a": 1, "b": [2.5, None]}) == settings_text({"b": [2.5, None], "a": 1})
    assert settings_text({"a": 1}) != settings_text({"a": "1"})


@pytest.mark.parametrize("spans", [[(2, 9)], [(0, 3), (2, 4)], [(3, 3)], [(-1, 2)]])
def test_tiles_that_do_not_fit_the_prompt_are_refused(spans: list[tuple[int, int]]):
    with pytest.raises(ValueError, match="does not fit: expected one after .* in 8 tokens"):
        names([1] * 8, tuple(TileSpan(start, stop, b"x" * 32) for start, stop in spans))


def test_a_digest_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"tile at tokens \[0, 3\) has a digest of 1 bytes"):
        names([1] * 8, (TileSpan(0, 3, b"x"),))
