"""Frame choice against the published one (tests/golden/data/videos.json), and the corrected sampler for folders."""

import json
import random
from pathlib import Path

import pytest

from mindspeed_vita.hf.frames import directory_fps, list_frames, natural_key, sample_directory_frames, sample_file_frames

VIDEOS = json.loads((Path(__file__).parents[2] / "golden" / "data" / "videos.json").read_text())["videos"]
FILES = [case for case in VIDEOS if case["kind"] == "file"]
FOLDERS = [case for case in VIDEOS if case["kind"] == "directory"]


@pytest.mark.parametrize("case", FILES, ids=lambda case: f"{case['num_frames']}-{case['max_frames']}")
@pytest.mark.parametrize("sampler", ["uniform", "legacy"])
def test_frames_of_a_file_equal_the_published_ones(case, sampler):
    limits = {"max_frames": case["max_frames"], "max_fps": case["max_fps"]}
    assert sample_file_frames(case["num_frames"], case["fps"], sampler=sampler, **limits) == case["frames"]


@pytest.mark.parametrize("case", FOLDERS, ids=lambda case: f"{case['name']}-{case['num_frames']}-{case['max_frames']}")
def test_legacy_frames_of_a_folder_equal_the_published_ones(case):
    limits = {"max_frames": case["max_frames"], "max_fps": case["max_fps"]}
    taken = sample_directory_frames(case["num_frames"], directory_fps(case["name"]), sampler="legacy", **limits)
    assert [f"frame-{place + 1}-of-{case['num_frames']}.png" for place in taken] == case["files"]


def test_uniform_reaches_the_end_of_a_folder_where_legacy_stops_early():
    legacy = sample_directory_frames(100, 1, max_frames=64, max_fps=1, sampler="legacy")
    uniform = sample_directory_frames(100, 1, max_frames=64, max_fps=1)
    assert legacy == list(range(64))
    assert len(uniform) == 64 and uniform[0] == 0 and uniform[-1] == 98 and len(set(uniform)) == 64


@pytest.mark.parametrize("sample", [sample_file_frames, sample_directory_frames])
def test_never_more_than_asked_never_out_of_range_never_none(sample):
    for count in (1, 2, 7, 64, 1000):
        for max_frames in (1, 3, 64):
            for fps, max_fps in ((1.0, 1.0), (29.97, 1.0), (1.0, 4.0), (2.0, 0.01)):
                taken = sample(count, fps, max_frames=max_frames, max_fps=max_fps)
                assert 1 <= len(taken) <= max_frames and taken == sorted(taken) and 0 <= taken[0] <= taken[-1] < count


def test_natural_order():
    ordered = ["1.png", "02.png", "10.png", "a2/b9.jpg", "a2/b10.jpg", "a10/b2.jpg", "f-9.png", "f-10.png"]
    shuffled = ordered[:]
    random.Random(0).shuffle(shuffled)
    assert sorted(shuffled, key=natural_key) == ordered
    assert sorted(["x1", "x01"], key=natural_key) == sorted(["x01", "x1"], key=natural_key)
    assert natural_key("²5") != natural_key("25")


def test_list_frames_goes_down_and_ignores_other_files(tmp_path):
    (tmp_path / "s").mkdir()
    for name in ("2.jpg", "10.png", "s/1.jpeg", "notes.txt"):
        (tmp_path / name).touch()
    assert [Path(path).name for path in list_frames(str(tmp_path))] == ["2.jpg", "10.png", "1.jpeg"]


def test_sharegptvideo_folders_were_cut_at_two_frames_a_second():
    assert (directory_fps("/data/ShareGPTVideo/x"), directory_fps("/data/x")) == (2.0, 1.0)


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="without frames"):
        sample_file_frames(0, 25, max_frames=4, max_fps=1)
    with pytest.raises(ValueError, match="fps=0"):
        sample_file_frames(5, 0, max_frames=4, max_fps=1)
    with pytest.raises(ValueError, match="'random' is unknown; expected one of uniform, legacy"):
        sample_directory_frames(5, 1, max_frames=4, max_fps=1, sampler="random")
