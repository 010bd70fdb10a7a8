"""The memo of tile digests: the same film hits, whatever its name; another film under the same name misses, whatever its time stamp."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from mindspeed_vita.inference.tile_memo import TileMemo, media_digest, read_content

DIGESTS = (b"1" * 32, b"2" * 32)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"first film")
    return path


def key_of(path: Path, settings: str = "s") -> bytes:
    return TileMemo.key(read_content(path).digest, settings)


def remembered(memo: TileMemo, path: Path, digests: tuple[bytes, ...] = DIGESTS) -> bytes:
    key = key_of(path)
    memo.remember(key, digests)
    return key


def test_the_same_content_hits_under_any_name(film: Path):
    memo = TileMemo()
    remembered(memo, film)
    copy = film.with_name("copy.mp4")
    copy.write_bytes(film.read_bytes())
    assert memo.find(key_of(film)) == DIGESTS
    assert memo.find(key_of(copy)) == DIGESTS


def test_a_frame_below_a_folder_of_a_film_counts(tmp_path: Path):
    """Frames in folders below the film's are shown too, so their bytes are part of its content and of what tells a change."""
    (tmp_path / "film" / "part2").mkdir(parents=True)
    for number, place in enumerate(("1.png", "part2/2.png")):
        (tmp_path / "film" / place).write_bytes(bytes([number]))
    before = read_content(tmp_path / "film")
    assert before.frames == tuple(hashlib.sha256(bytes([number])).digest() for number in range(2))
    (tmp_path / "film" / "part2" / "2.png").write_bytes(b"3")
    after = read_content(tmp_path / "film")
    assert not before.unchanged() and after.digest != before.digest
    assert after.frames[0] == before.frames[0] and after.frames[1] != before.frames[1]


def test_other_settings_miss(film: Path):
    memo = TileMemo()
    remembered(memo, film)
    assert memo.find(key_of(film, "other")) is None


def test_a_file_replaced_under_its_name_misses_with_the_same_size_inode_and_time(film: Path):
    memo = TileMemo()
    remembered(memo, film)
    before = film.stat()
    with open(film, "r+b") as file:
        file.write(b"other film")
    os.utime(film, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = film.stat()
    assert (before.st_size, before.st_ino, before.st_mtime_ns) == (after.st_size, after.st_ino, after.st_mtime_ns)
    assert memo.find(key_of(film)) is None


@pytest.mark.parametrize("times", range(20))
def test_a_file_that_changes_after_it_was_read_is_told_whatever_its_time_stamp(film: Path, times: int):
    """Also where both writes fall into one tick of the clock, and the time of the last write is set back."""
    film.write_bytes(b"first film")
    content, before = read_content(film), film.stat()
    assert content.unchanged()
    with open(film, "r+b") as file:
        file.write(b"other film")
    os.utime(film, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert film.stat().st_mtime_ns == before.st_mtime_ns and not content.unchanged()


def test_a_folder_changes_with_each_file_in_it(tmp_path: Path):
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(b"one")
    content = read_content(tmp_path)
    assert content.unchanged()
    (tmp_path / "2.png").write_bytes(b"two")
    assert not content.unchanged()
    content = read_content(tmp_path)
    (tmp_path / "3.png").write_bytes(b"three")
    assert not content.unchanged()
    (tmp_path / "3.png").unlink()
    assert content.unchanged()


def test_a_file_that_is_gone_is_not_unchanged(film: Path):
    content = read_content(film)
    film.unlink()
    assert not content.unchanged()


def test_a_folder_of_frames_is_its_path_its_names_and_its_pictures(tmp_path: Path):
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "1.png").write_bytes(b"one")
    (folder / "2.png").write_bytes(b"two")
    seen = {media_digest(folder)}
    (folder / "2.png").rename(folder / "3.png")
    seen.add(media_digest(folder))
    (folder / "3.png").write_bytes(b"three")
    seen.add(media_digest(folder))
    folder = folder.rename(tmp_path / "ShareGPTVideo")  # the rate of its frames follows from its path
    seen.add(media_digest(folder))
    assert len(seen) == 4
    assert media_digest(folder) in seen


def test_the_film_used_least_recently_goes_first(tmp_path: Path):
    memo, keys = TileMemo(max_tiles=4), {}
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode())
    for name in ("a", "b"):
        keys[name] = remembered(memo, tmp_path / name)
    assert memo.find(keys["a"]) == DIGESTS
    keys["c"] = remembered(memo, tmp_path / "c")
    assert [memo.find(keys[name]) is not None for name in ("a", "b", "c")] == [True, False, True]


def test_the_last_film_is_kept_even_if_it_alone_is_over_the_limit_and_counts_once(tmp_path: Path):
    memo = TileMemo(max_tiles=2)
    (tmp_path / "a").write_bytes(b"a")
    long = tuple(bytes([number]) * 32 for number in range(5))
    for _ in range(2):
        key = remembered(memo, tmp_path / "a", digests=long)
    assert memo.find(key) == long and len(memo) == 1


def test_a_missing_file_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        read_content(tmp_path / "none")
