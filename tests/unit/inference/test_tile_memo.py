"""The memo of tile digests: the same film hits, whatever its name; another film under the same name misses, whatever its time stamp."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from mindspeed_vita.inference.tile_memo import TileMemo, digest_slices, media_digest

DIGESTS = (b"1" * 32, b"2" * 32)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"first film")
    return path


def remembered(memo: TileMemo, path: Path, settings: str = "s", digests: tuple[bytes, ...] = DIGESTS) -> bytes:
    key = key_of(path, settings)
    assert memo.remember(key, key_of(path, settings), digests)
    return key


def key_of(path: Path, settings: str = "s") -> bytes:
    return TileMemo.key(media_digest(path), settings)


def test_the_same_content_hits_under_any_name(film: Path):
    memo = TileMemo()
    remembered(memo, film)
    copy = film.with_name("copy.mp4")
    copy.write_bytes(film.read_bytes())
    assert memo.find(key_of(film)) == DIGESTS
    assert memo.find(key_of(copy)) == DIGESTS


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


def test_a_file_replaced_while_it_was_decoded_is_not_remembered(film: Path):
    memo = TileMemo()
    key = key_of(film)
    film.write_bytes(b"other film")
    assert not memo.remember(key, key_of(film), DIGESTS)
    assert memo.find(key) is None and len(memo) == 0


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
        media_digest(tmp_path / "none")


def test_a_large_file_is_read_in_slices_with_the_same_digest(tmp_path: Path):
    path = tmp_path / "large"
    path.write_bytes(os.urandom(1 << 20) * 9)
    slices, count = digest_slices(path), 0
    while True:
        try:
            next(slices)
        except StopIteration as done:
            assert done.value == media_digest(path) == hashlib.sha256(path.read_bytes()).digest()
            break
        count += 1
    assert count == 2, "9 MiB in slices of 4"
