"""Memory shared with the decoder: places that no two jobs have at a time, and the same tiles by either way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindspeed_vita.data.media import arena as arena_module
from mindspeed_vita.data.media import decoder as decoder_module
from mindspeed_vita.data.media.arena import Arena
from mindspeed_vita.data.media.decoder import Decoder, Job
from mindspeed_vita.data.media.image import picture_tiles
from mindspeed_vita.data.media.limits import DecodeSettings

pytestmark = pytest.mark.skipif(arena_module.memory_to_share() is None, reason="this system has no memfd")


@given(st.lists(st.one_of(st.none(), st.integers(1, 100)), max_size=80))
def test_no_two_jobs_under_way_have_the_same_bytes(steps):
    arena = object.__new__(Arena)
    arena._held = decoder_module.deque()
    held = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arena_module, "SIZE", 100)
        for size in steps:
            if size is None:
                if held:
                    held.pop(0)
                    arena.free()
                continue
            start = arena.take(size)
            assert start is not None or held, "with nothing under way every size fits"
            if start is None:
                continue
            assert start >= 0 and start + size <= 100
            assert all(start + size <= first or last <= start for first, last in held)
            held.append((start, start + size))


@pytest.mark.parametrize("room", [3 * 3 * 28 * 28, 8 * 3 * 28 * 28, 1 << 20])
def test_tiles_are_the_same_through_shared_memory_and_through_the_pipe(tmp_path, picture, monkeypatch, room):
    """The first room holds one picture of three tiles at a time; the tile of 700 pixels fits none of them."""
    fetched = []
    fetch = Arena.fetch
    monkeypatch.setattr(Arena, "fetch", lambda self, start, into: fetched.append(start) or fetch(self, start, into))
    monkeypatch.setattr(arena_module, "SIZE", room)
    monkeypatch.setattr(decoder_module, "SIZE", room)
    for number in range(4):
        picture(60 + number, 30).save(tmp_path / f"{number}.png")
    picture(60, 60).save(tmp_path / "large.png")
    tiles = np.zeros((12, 3, 3, 28, 28), np.uint8)
    large = np.zeros((1, 3, 700, 700), np.uint8)
    jobs = [Job.picture(f"{place % 4}.png", str(tmp_path), (2, 1), range(3), into) for place, into in enumerate(tiles)]
    jobs.insert(5, Job.picture("large.png", str(tmp_path), (1, 1), range(1), large))
    jobs.insert(7, Job.header("0.png", str(tmp_path), False))
    jobs.insert(9, Job.picture("gone.png", str(tmp_path), (2, 1), range(3), np.zeros((3, 3, 28, 28), np.uint8)))
    child = Decoder(DecodeSettings())
    errors = child.run(jobs)
    assert [place for place, error in enumerate(errors) if error] == [9]
    for place, into in enumerate(tiles):
        name = str(tmp_path / f"{place % 4}.png")
        assert np.array_equal(into, picture_tiles(name, (2, 1), tile_size=28, wanted=range(3)))
    assert np.array_equal(large, picture_tiles(str(tmp_path / "large.png"), (1, 1), tile_size=700, wanted=range(1)))
    assert len(fetched) == 36, "the large picture, and nothing else, came through the pipe"
    assert not child._places and not child._arena._held
    child.close()


def test_without_such_memory_all_tiles_come_through_the_pipe(tmp_path, picture, monkeypatch):
    monkeypatch.setattr(decoder_module, "memory_to_share", lambda: None)
    picture(60, 30).save(tmp_path / "0.png")
    into = np.zeros((3, 3, 28, 28), np.uint8)
    child = Decoder(DecodeSettings())
    child.picture("0.png", str(tmp_path), (2, 1), range(3), into)
    assert child._arena is None and np.array_equal(into, picture_tiles(str(tmp_path / "0.png"), (2, 1), tile_size=28, wanted=range(3)))
    child.close()
