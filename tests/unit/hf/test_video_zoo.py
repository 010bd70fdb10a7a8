"""Which frame a number means, in files of many kinds, is what the ffmpeg program shows."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindspeed_vita.data.media.paths import MediaError
from mindspeed_vita.data.media.readers import read_frames
from mindspeed_vita.hf.frames import sample_file_times
from mindspeed_vita.hf.video_file import _turn, decode_file_frames, probe_file, spacing_is_irregular
from mindspeed_vita.hf.video_reading import read_video
from tests.unit.hf import video_zoo
from tests.unit.hf.video_zoo import Animal

WITHOUT = shutil.which("ffmpeg") is None


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Animal]:
    if WITHOUT and os.environ.get("CI") == "true":
        pytest.fail("ffmpeg is not on PATH; apt-get install ffmpeg")
    if WITHOUT:
        pytest.skip("ffmpeg is not on PATH (Debian, Ubuntu: apt-get install ffmpeg)")
    return video_zoo.build(tmp_path_factory.mktemp("zoo"))


def numbers_shown(path: str, numbers: list[int]) -> list[int]:
    return [video_zoo.number_of(np.asarray(image.convert("L"))) for image in decode_file_frames(path, numbers)]


def test_frame_numbers_are_those_of_a_plain_decode(zoo: dict[str, Animal]) -> None:
    wrong = []
    for name, animal in zoo.items():
        wanted = video_zoo.shown_by_ffmpeg(animal.path)
        try:
            count = probe_file(str(animal.path)).num_frames
        except ValueError as error:
            if wanted:
                wrong.append(f"{name}: {error}; ffmpeg shows {len(wanted)} frames")
            continue
        if not wanted:
            wrong.append(f"{name}: found {count} frames, ffmpeg shows none")
            continue
        found = numbers_shown(str(animal.path), list(range(count)))
        if animal.breaks_off:  # the same frames in the same order, some of them repeated
            wanted = sorted(found) if sorted(set(found)) == wanted else wanted
        if found != wanted:
            wrong.append(f"{name}: found {found}, expected {wanted}")
            continue
        some = sorted(random.Random(name).sample(range(count), min(7, count)))
        if numbers_shown(str(animal.path), some) != [wanted[number] for number in some]:
            wrong.append(f"{name}: frames {some} depend on what else is asked for")
    assert not wrong, "\n".join(wrong)
    assert len(zoo) >= 60


def test_files_whose_frames_come_at_uneven_times_are_told_apart(zoo: dict[str, Animal]) -> None:
    uneven = {name for name, animal in zoo.items() if not animal.breaks_off and spacing_is_irregular(str(animal.path))}
    assert uneven == {"gaps.mkv", "gaps.mp4", "gaps.ts", "dropped_mjpeg.avi", "dropped_mpeg4.avi"}


@pytest.mark.parametrize("name", ["gaps.mkv", "gaps.mp4", "gaps.ts", "dropped_mjpeg.avi", "dropped_mpeg4.avi"])
def test_the_sampler_by_time_covers_an_uneven_film_evenly(zoo: dict[str, Animal], name: str) -> None:
    path = str(zoo[name].path)
    moments = sample_file_times(probe_file(path).seconds, max_frames=64, max_fps=1)
    # frames 0 to 19 come every tenth of a second, then 26, 39, 52, 65 and 78
    assert moments == [0, 1000, 2000, 3000, 4000, 5000, 6000, 7000]
    images = read_video(path, max_frames=64, max_fps=1, sampler="time")
    assert [video_zoo.number_of(np.asarray(image.convert("L"))) for image in images] == [0, 10, 19, 26, 39, 39, 52, 65]


@pytest.fixture(scope="module")
def turned(zoo: dict[str, Animal], tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Clips that lie on their side: left half red, right half blue, with a note to turn them."""
    folder = tmp_path_factory.mktemp("turned")
    source = "color=red:s=32x32:d=1:r=10[a];color=blue:s=32x32:d=1:r=10[b];[a][b]hstack"
    video_zoo.ffmpeg("-filter_complex", source, "-c:v", "libx264", "-pix_fmt", "yuv420p", folder / "0.mp4")
    for angle in (90, 180, 270):
        video_zoo.ffmpeg("-i", folder / "0.mp4", "-c", "copy", "-metadata:s:v", f"rotate={angle}", folder / f"{angle}.mp4")
    return {angle: str(folder / f"{angle}.mp4") for angle in (0, 90, 180, 270)}


@pytest.mark.parametrize("reader", ["pyav", "decord"])
@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_frames_are_turned_as_the_file_says(turned: dict[int, str], angle: int, reader: str, tmp_path: Path) -> None:
    if reader == "decord":
        pytest.importorskip("decord", reason="decord is not installed (it has wheels for x86-64 only)")
    video_zoo.ffmpeg("-i", turned[angle], "-frames:v", 1, tmp_path / "wanted.png")
    with Image.open(tmp_path / "wanted.png") as picture:
        wanted = np.asarray(picture.convert("RGB")).astype(int)
    (found,) = read_frames(turned[angle], [0], reader=reader)
    assert np.abs(np.asarray(found).astype(int) - wanted).max() < 12
    (found,) = read_frames(turned[angle], [0], reader="pyav", longest_side=16)
    assert found.size == ((16, 8) if angle in (0, 180) else (8, 16))


def test_mirrors_in_a_display_matrix_are_applied() -> None:
    class Frame:
        side_data = {"DISPLAYMATRIX": np.array([-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30], np.int32)}

    assert _turn(Frame()) is Image.Transpose.FLIP_LEFT_RIGHT
    Frame.side_data = {}
    assert _turn(Frame()) is None


def test_other_readers_are_refused_for_files_of_which_they_take_other_frames(zoo: dict[str, Animal]) -> None:
    pytest.importorskip("decord", reason="decord is not installed (it has wheels for x86-64 only)")
    with pytest.raises(MediaError, match="data.video_reader=decord takes wrong frames of avi files; use pyav"):
        next(read_frames(str(zoo["dropped_mjpeg.avi"].path), [0], reader="decord"))
    wrong = []
    for name, animal in zoo.items():
        try:
            images = list(read_frames(str(animal.path), [0, 5], reader="decord"))
        except (MediaError, ValueError):
            continue
        if [video_zoo.number_of(np.asarray(image.convert("L"))) for image in images] != numbers_shown(str(animal.path), [0, 5]):
            wrong.append(name)
    assert not wrong


def test_a_file_without_a_frame_that_can_be_decoded_is_refused(zoo: dict[str, Animal], tmp_path: Path) -> None:
    (tmp_path / "noise.mp4").write_bytes(bytes(random.Random(0).randbytes(5000)))
    with pytest.raises(ValueError, match="cannot be read: "):
        read_video(str(tmp_path / "noise.mp4"), max_frames=4, max_fps=1, sampler="uniform")


def test_a_film_does_not_lie_in_memory_while_its_frames_are_taken(zoo: dict[str, Animal], tmp_path: Path) -> None:
    path = tmp_path / "large.mkv"
    video_zoo.ffmpeg("-f", "lavfi", "-i", "color=red:s=640x480:r=10:d=24", "-c:v", "rawvideo", "-pix_fmt", "yuv420p", path)
    assert path.stat().st_size > 100 << 20
    code = (
        "import re, sys\n"
        "from mindspeed_vita.hf.video_file import decode_file_frames, probe_file\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) >> 10\n"
        "header = probe_file(sys.argv[1]); before = peak()\n"
        "images = list(decode_file_frames(sys.argv[1], [0, 100, 239]))\n"
        "print(header.num_frames, len(images), peak() - before, before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    count, images, grown, before = map(int, done.stdout.split())
    assert (count, images) == (240, 3)
    assert grown < 60 and before < 160, f"{grown} MiB more than {before} MiB for a film of {path.stat().st_size >> 20} MiB"
