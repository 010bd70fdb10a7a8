"""Makes a sample fit a pack: fewer frames first, then fewer tiles, then fewer turns; token counts come from headers alone."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from mindspeed_vita.data.measure import Measured
from mindspeed_vita.data.media.limits import MediaLimits
from mindspeed_vita.data.media.paths import MediaError
from mindspeed_vita.data.media.video import VideoHeader
from mindspeed_vita.hf.token_layout import image_tile_count, image_token_count, video_token_count


@dataclass(frozen=True)
class FittedMedia:
    """Pictures and videos of one sample, as they will be cut."""

    grids: tuple[tuple[int, int], ...]
    """(columns, rows) of each picture."""
    frame_limits: tuple[int, ...]
    """Most frames of each video; the frames follow from it and from the header."""
    num_tokens: int
    num_tiles: int


def fit_media(sizes: Sequence[tuple[int, int]], videos: Sequence[VideoHeader], room: int, limits: MediaLimits) -> FittedMedia | None:
    """Chooses grids and frame counts that need at most room tokens.

    Everything keeps its full size where that fits. Otherwise videos lose frames evenly, down to one each, and only then
    pictures lose tiles: the limit of tiles per picture falls one at a time.

    Args:
        sizes: (width, height) of each picture.
        videos: header of each video.
        room: tokens of the pack that the text leaves.
        limits: the full sizes.

    Returns:
        The choice, or None where even the smallest one does not fit.
    """
    wanted = [len(limits.frames(header, limits.max_frames)) for header in videos]
    tiles_now = range(limits.max_tiles, limits.min_tiles - 1, -1) if sizes else (limits.max_tiles,)
    for max_tiles in tiles_now:
        grids = tuple(limits.grid(size, max_tiles) for size in sizes)
        picture_tokens = sum(image_token_count(grid, limits.tokens_per_tile) for grid in grids)
        shares = _share(wanted, (room - picture_tokens) // video_token_count(1, limits.tokens_per_tile))
        if picture_tokens > room or shares is None:
            continue
        # A video that keeps all its frames keeps the limit they came from: a tighter one would move them.
        frame_limits = tuple(limits.max_frames if share == want else share for share, want in zip(shares, wanted))
        num_frames = sum(len(limits.frames(header, limit)) for header, limit in zip(videos, frame_limits))
        return FittedMedia(
            grids,
            frame_limits,
            picture_tokens + video_token_count(num_frames, limits.tokens_per_tile),
            sum(image_tile_count(grid) for grid in grids) + num_frames,
        )
    return None


@dataclass(frozen=True)
class FittedSample:
    """A sample as it will stand in a pack."""

    num_messages: int
    """Turns kept, from the first."""
    num_tokens: int
    media: FittedMedia


def fit_sample(measured: Measured, *, seq_length: int, max_images: int, limits: MediaLimits) -> FittedSample:
    """Fits one sample to a pack: media shrink first, then turns go, from the end, a question together with its answer.

    Raises:
        MediaError: it has too many pictures, or does not fit however it is cut.
    """
    if len(measured.sizes) > max_images:
        raise MediaError("", f"found {len(measured.sizes)} pictures, data.max_images allows {max_images}")
    # place k: of the first k turns
    text, pictures, videos = (
        [0, *accumulate(column)] for column in (measured.turn_tokens, measured.turn_images, measured.turn_videos)
    )

    def fit(kept: int) -> FittedMedia | None:
        return fit_media(measured.sizes[: pictures[kept]], measured.videos[: videos[kept]], seq_length - text[kept], limits)

    ends = [place for place, answer in enumerate(measured.turn_answers, start=1) if answer]
    if ends[-1] < len(measured.turn_tokens):
        ends.append(len(measured.turn_tokens))
    kept = ends[-1]
    media = fit(kept)
    if media is None:
        # fewer turns never need more room
        too_long = bisect_left(ends, True, key=lambda end: fit(end) is None)
        kept = ends[too_long - 1] if too_long else 0
        media = fit(kept) if kept else None
    if media is None:
        raise MediaError("", f"does not fit a pack of {seq_length} tokens even with the fewest frames, tiles and turns")
    assert text[kept] + media.num_tokens <= seq_length, (text[kept], media)
    return FittedSample(kept, text[kept] + media.num_tokens, media)


def _share(wanted: Sequence[int], budget: int) -> list[int] | None:
    """Shares a budget of frames out in proportion to what is wanted, at least one each; None if it is too small."""
    total = sum(wanted)
    if total <= budget:
        return list(wanted)
    if budget < len(wanted):
        return None
    spare = budget - len(wanted)
    above = total - len(wanted)
    return [1 + (want - 1) * spare // above for want in wanted]
