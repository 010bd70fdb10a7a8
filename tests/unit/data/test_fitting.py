"""Fitting media into what the text leaves of a pack."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_vita.data.fitting import fit_media
from mindspeed_vita.data.media.limits import MediaLimits
from mindspeed_vita.data.media.video import VideoHeader
from mindspeed_vita.hf.token_layout import image_tile_count, image_token_count

LIMITS = MediaLimits(tokens_per_tile=256, tile_size=448, min_tiles=1, max_tiles=12, max_frames=64, max_fps=1.0, sampler="uniform")


def test_a_full_length_video_keeps_as_many_frames_as_fit():
    """64 frames of 258 tokens exceed a pack of 16,384: the video loses two frames, the sample is not lost."""
    hour = VideoHeader(False, 3600 * 25, 25.0)
    fitted = fit_media([], [hour], 16_384 - 100, LIMITS)
    assert fitted is not None and (fitted.num_tiles, fitted.num_tokens) == (63, 63 * 258)
    assert len(LIMITS.frames(hour, fitted.frame_limits[0])) == 63


def test_what_fits_is_left_alone():
    header = VideoHeader(False, 250, 25.0)
    fitted = fit_media([(640, 480)], [header], 20_000, LIMITS)
    assert fitted is not None and fitted.grids == ((4, 3),) and fitted.frame_limits == (64,)
    assert fitted.num_tokens == 3357 + 10 * 258 and fitted.num_tiles == 13 + 10


def test_frames_go_before_tiles():
    header = VideoHeader(False, 250, 25.0)
    fitted = fit_media([(640, 480)], [header], 3357 + 258 * 4, LIMITS)
    assert fitted is not None and fitted.grids == ((4, 3),) and fitted.num_tiles == 13 + 4
    tighter = fit_media([(640, 480)], [header], 3357, LIMITS)
    assert tighter is not None and tighter.grids == ((3, 2),) and tighter.num_tiles == 7 + 6, "tiles go once one frame is too many"


def test_nothing_fits_nothing():
    assert fit_media([(10, 10)], [], 257, LIMITS) is None
    assert fit_media([], [], -1, LIMITS) is None
    empty = fit_media([], [], 0, LIMITS)
    assert empty is not None and empty.num_tokens == 0


@given(
    st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), max_size=4),
    st.lists(st.builds(VideoHeader, st.booleans(), st.integers(1, 5000), st.sampled_from([1.0, 2.0, 23.976, 30.0])), max_size=3),
    st.integers(0, 40_000),
)
@settings(max_examples=150, deadline=None)
def test_counts_are_right_and_never_over_the_room(sizes, videos, room):
    fitted = fit_media(sizes, videos, room, LIMITS)
    least = 258 * (len(sizes) + len(videos))
    assert (fitted is None) == (room < least)
    if fitted is not None:
        frames = sum(len(LIMITS.frames(header, limit)) for header, limit in zip(videos, fitted.frame_limits))
        assert fitted.num_tokens == sum(image_token_count(grid, 256) for grid in fitted.grids) + 258 * frames <= room
        assert fitted.num_tiles == sum(map(image_tile_count, fitted.grids)) + frames
