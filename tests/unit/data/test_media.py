"""Videos and pictures: headers, frames and failures."""

import hashlib
import io
import json
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from mindspeed_vita.data.media.image import frame_picture, picture_tiles, probe_picture
from mindspeed_vita.data.media.paths import MediaError, resolve
from mindspeed_vita.data.media.video import VideoHeader, probe_video, video_tiles
from mindspeed_vita.hf.frames import sample_file_frames
from mindspeed_vita.hf.tiling import frame_tile, normalize
from mindspeed_vita.hf.video_file import decode_file_frames
from mindspeed_vita.hf.video_reading import read_video

VIDEOS = json.loads((Path(__file__).parents[2] / "golden" / "data" / "videos.json").read_text())["videos"]
FILES = [case for case in VIDEOS if case["kind"] == "file"]
FOLDERS = [case for case in VIDEOS if case["kind"] == "directory"]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_headers_give_frames_and_rate_in_every_container(tmp_path, clip, suffix):
    header = probe_video(str(clip(tmp_path / f"c.{suffix}", 47, 12)))
    assert (header.is_folder, header.num_frames, header.fps) == (False, 47, 12.0)


@pytest.mark.parametrize("case", FILES, ids=lambda case: f"{case['num_frames']}-{case['max_frames']}")
def test_frames_of_a_file_are_those_of_the_published_sampler(tmp_path, clip, case):
    path = str(clip(tmp_path / "c.mp4", case["num_frames"], case["fps"]))
    header = probe_video(path)
    numbers = header.sample(max_frames=case["max_frames"], max_fps=case["max_fps"], sampler="uniform")
    assert numbers == case["frames"]
    tiles = video_tiles(path, header, numbers, tile_size=28, root=str(tmp_path))
    whole = [frame_tile(image, tile_size=28) for image in decode_file_frames(path, range(case["num_frames"]))]
    assert np.array_equal(tiles, np.stack([whole[number] for number in numbers]))


def test_frames_equal_those_of_decord(tmp_path, clip):
    decord = pytest.importorskip("decord", reason="decord is not installed (it has wheels for x86-64 only)")
    path = str(clip(tmp_path / "c.mp4", 40, 10))
    reader = decord.VideoReader(path, num_threads=1)
    numbers = sample_file_frames(len(reader), reader.get_avg_fps(), max_frames=6, max_fps=2)
    for number, image in zip(numbers, decode_file_frames(path, numbers)):
        assert np.array_equal(np.asarray(image), reader[number].asnumpy())


@pytest.mark.parametrize("case", FOLDERS, ids=lambda case: f"{case['name']}-{case['num_frames']}-{case['max_frames']}")
def test_tiles_of_a_frame_folder_equal_the_published_ones(tmp_path, case):
    folder = tmp_path / case["name"]
    folder.mkdir()
    total = case["num_frames"]
    for number in range(total):
        Image.new("RGB", (40, 30), (2 * number, 255 - number, number)).save(folder / f"frame-{number + 1}-of-{total}.png")
    header = probe_video(str(folder))
    numbers = header.sample(max_frames=case["max_frames"], max_fps=case["max_fps"], sampler="legacy")
    tiles = video_tiles(str(folder), header, numbers, tile_size=448, root=str(tmp_path))
    normalised = np.ascontiguousarray(normalize(tiles), dtype="<f4")
    assert hashlib.sha256(normalised.tobytes()).hexdigest() == case["tiles_sha256"]


def test_a_file_that_ends_early_repeats_its_last_frame(tmp_path, clip):
    path = str(clip(tmp_path / "c.mp4", 10, 10))
    claimed = VideoHeader(False, 30, 10.0)
    tiles = video_tiles(path, claimed, [0, 9, 10, 20, 29], tile_size=28, root=str(tmp_path))
    assert np.array_equal(tiles[1], tiles[4]) and np.array_equal(tiles[2], tiles[3]) and not np.array_equal(tiles[0], tiles[1])
    later = video_tiles(path, claimed, [20, 29], tile_size=28, root=str(tmp_path))
    assert np.array_equal(later, tiles[3:]), "another rank's share of the same video gives the same frames"


def test_a_folder_that_changed_is_a_failure(tmp_path, picture):
    for number in range(3):
        picture(20, 20).save(tmp_path / f"{number}.png")
    header = probe_video(str(tmp_path))
    os.unlink(tmp_path / "1.png")
    with pytest.raises(MediaError, match="holds 2 frames, had 3 when it was indexed"):
        video_tiles(str(tmp_path), header, [0, 1, 2], tile_size=28, root=str(tmp_path))


def test_a_linked_frame_folder_has_the_rate_of_the_path_as_written(tmp_path, picture):
    (tmp_path / "plain").mkdir()
    for number in range(9):
        picture(20, 20).save(tmp_path / "plain" / f"{number}.png")
    (tmp_path / "ShareGPTVideo").symlink_to("plain")
    for name, fps in (("plain", 1.0), ("ShareGPTVideo", 2.0)):
        header = probe_video(name, str(tmp_path))
        limits = {"max_frames": 8, "max_fps": 1, "sampler": "uniform"}
        assert header == VideoHeader(True, 9, fps) == probe_video(str(tmp_path / name))
        assert len(header.sample(**limits)) == len(read_video(str(tmp_path / name), **limits)), "as the processor takes them"


def test_the_first_frame_may_not_lead_out_of_the_root_either(tmp_path, picture):
    picture(20, 20).save(tmp_path / "secret.png")
    (tmp_path / "root" / "frames").mkdir(parents=True)
    (tmp_path / "root" / "frames" / "0.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(MediaError, match="outside the media root"):
        probe_video("frames", str(tmp_path / "root"))


def test_damaged_files_are_media_errors_with_a_reason(tmp_path, picture, clip):
    picture(200, 200).save(tmp_path / "p.png")
    data = bytearray((tmp_path / "p.png").read_bytes())
    data[len(data) // 2 :: 3] = b"\x55" * len(data[len(data) // 2 :: 3])
    (tmp_path / "noise.png").write_bytes(data)
    assert probe_picture(str(tmp_path / "noise.png")) == (200, 200)
    with pytest.raises(MediaError, match="cannot be read as a picture"):
        picture_tiles(str(tmp_path / "noise.png"), (1, 1), tile_size=28, wanted=range(1))
    whole = clip(tmp_path / "c.mp4", 20, 10).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match="cannot be read as a video"):
        probe_video(str(tmp_path / "cut.mp4"))
    (tmp_path / "sound.txt").write_text("no video")
    with pytest.raises(MediaError, match="cannot be read as a video"):
        probe_video(str(tmp_path / "sound.txt"))


def saved_formats(image: Image.Image) -> dict[str, bytes]:
    """The picture in every format that this Pillow writes and reads."""
    Image.init()
    found = {}
    for name in sorted(set(Image.SAVE) & set(Image.OPEN)):
        for mode in ("RGB", "L", "1"):
            file = io.BytesIO()
            try:
                image.convert(mode).save(file, name)
                Image.open(io.BytesIO(file.getvalue())).convert("RGB")
            except (OSError, ValueError, KeyError, RuntimeError, ImportError, Image.DecompressionBombError):
                continue  # not in this mode or size, or a codec that is not built in
            found[name] = file.getvalue()
            break
    return found


@pytest.mark.filterwarnings("ignore")
def test_pictures_damaged_anywhere_are_media_errors_or_pictures(tmp_path, monkeypatch, picture):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)  # damage to a header must not make the test slow
    random_numbers, path, broken = random.Random(5), tmp_path / "p", 0
    formats = saved_formats(picture(60, 40))
    assert {"PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"} <= set(formats)
    for whole in formats.values():
        for _ in range(40):
            data = bytearray(whole)
            for _ in range(random_numbers.choice([1, 3, 10])):
                place = random_numbers.randrange(min(len(data), random_numbers.choice([100, 10**6])))
                data[place] = random_numbers.choice([0, 255, random_numbers.randrange(256)])
            path.write_bytes(data[: random_numbers.choice([len(data), random_numbers.randrange(len(data))])])
            try:
                probe_picture(str(path))
                assert picture_tiles(str(path), (2, 1), tile_size=8, wanted=range(3)).shape == (3, 3, 8, 8)
            except MediaError:
                broken += 1
    assert broken > 10 * len(formats)


RAISED_BY_PLUGINS = [NotImplementedError, IndexError, KeyError, TypeError, OverflowError, ZeroDivisionError, MemoryError]
RAISED_BY_PLUGINS += [RuntimeError, RecursionError, AttributeError, AssertionError, BufferError, ImportError, zlib.error, struct.error]


@pytest.mark.parametrize("kind", RAISED_BY_PLUGINS)
def test_whatever_a_plugin_raises_is_a_media_error(tmp_path, monkeypatch, picture, kind):
    def fail(*_):
        raise kind("plugin")

    path = str(tmp_path / "p.png")
    picture(20, 20).save(path)
    monkeypatch.setattr(PngImageFile, "load", fail)
    for read in (lambda: picture_tiles(path, (1, 1), tile_size=8, wanted=range(1)), lambda: frame_picture(path, tile_size=8)):
        with pytest.raises(MediaError, match=kind.__name__):
            read()
    monkeypatch.setattr(PngImageFile, "_open", fail)
    with pytest.raises(MediaError):
        probe_picture(path)


def test_a_fault_of_ours_is_no_broken_picture(tmp_path, picture):
    picture(20, 20).save(tmp_path / "p.png")
    with pytest.raises(AssertionError):
        picture_tiles(str(tmp_path / "p.png"), (1, 1), tile_size=8, wanted=range(5))


def test_a_huge_picture_is_refused_from_its_header(tmp_path, monkeypatch, picture):
    picture(300, 300).save(tmp_path / "p.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(MediaError, match="DecompressionBombError"):
        probe_picture(str(tmp_path / "p.png"))


@pytest.mark.parametrize("path", ["", "a\0b", "..", "../x", "/etc/hostname", "gone.png", "\ud800.png", "x" * 5000])
def test_paths_that_lead_nowhere_or_out(tmp_path, path):
    with pytest.raises(MediaError):
        resolve(path, str(tmp_path / "root"))


def test_a_root_may_itself_be_a_link(tmp_path, picture):
    (tmp_path / "real").mkdir()
    picture(5, 5).save(tmp_path / "real" / "p.png")
    (tmp_path / "root").symlink_to(tmp_path / "real")
    assert resolve("p.png", str(tmp_path / "root")) == str((tmp_path / "real" / "p.png").resolve())
