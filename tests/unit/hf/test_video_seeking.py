"""Frames found by seeking are those found by counting, whatever else was asked for before them."""

import random

import av
import numpy as np
import pytest

from mindspeed_vita.hf import video_file

NUM_FRAMES = 240


def write(path, codec: str, options: dict[str, str]) -> str:
    """A clip with motion, so that frames depend on one another, and key frames every 50."""
    ground = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8).repeat(2, axis=0)[:96]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 128, 96, "yuv420p", 50
        stream.options = options
        for number in range(NUM_FRAMES):
            picture = np.roll(ground, number, 1) // 2 + number % 100
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return str(path)


@pytest.fixture(scope="module", params=["h264.mp4", "h264.mkv", "mpeg4.mp4", "h264.avi", "h264.ts"])
def video(request, tmp_path_factory):
    codec = "libx264" if request.param.startswith("h264") else "mpeg4"
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")
    options = {"preset": "veryfast", "bf": "3", "b_strategy": "0", "threads": "1"} if codec == "libx264" else {"bf": "2"}
    return write(tmp_path_factory.mktemp("video") / request.param, codec, options)


@pytest.fixture(scope="module")
def counted(video):
    """Every frame, from the first on."""
    with video_file.open_file(video) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.video[0])]


def test_the_clip_has_frames_that_no_other_refers_to(video):
    with video_file.open_file(video) as container:
        container.streams.video[0].codec_context.skip_frame = "NONREF"
        kept = sum(1 for _ in container.decode(container.streams.video[0]))
    assert kept < 0.8 * NUM_FRAMES


def test_any_choice_of_frames_equals_counting(video, counted):
    assert len(counted) == NUM_FRAMES
    choices = [[0], [NUM_FRAMES - 1], [49, 50, 51], list(range(0, NUM_FRAMES, 7)), list(range(NUM_FRAMES)), [3, 3, 120, 120, 239]]
    choices += [sorted(random.Random(seed).sample(range(NUM_FRAMES), 9)) for seed in range(3)]
    for numbers in choices:
        found = [np.asarray(image) for image in video_file.decode_file_frames(video, numbers)]
        assert len(found) == len(numbers)
        assert all(np.array_equal(image, counted[number]) for image, number in zip(found, numbers)), numbers


def test_numbers_past_the_end_repeat_the_last_frame(video, counted):
    found = [np.asarray(image) for image in video_file.decode_file_frames(video, [238, 240, 900])]
    assert np.array_equal(found[0], counted[238]) and all(np.array_equal(image, counted[-1]) for image in found[1:])


def test_two_shares_of_one_video_are_the_whole(video, counted):
    numbers = list(range(5, NUM_FRAMES, 11))
    halves = [numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]]
    found = [np.asarray(image) for half in halves for image in video_file.decode_file_frames(video, half)]
    assert all(np.array_equal(image, counted[number]) for image, number in zip(found, numbers))


def test_scaling_in_the_decoder_keeps_the_ratio(video):
    (image,) = video_file.decode_file_frames(video, [7], longest_side=64)
    assert image.size == (64, 48)
