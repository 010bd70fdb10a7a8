"""Fitting by the column gives for every row what fitting it alone gives."""

import numpy as np
import pytest

from mindspeed_vita.data.columns import ColumnWriter, SampleIndex
from mindspeed_vita.data.fit_index import FitSettings, fit_file
from mindspeed_vita.data.fitting import fit_sample
from mindspeed_vita.data.index_file import SourceStamp, make_batch, row_columns, write_index
from mindspeed_vita.data.measure import Measured
from mindspeed_vita.data.media.limits import MediaLimits
from mindspeed_vita.data.media.paths import MediaError
from mindspeed_vita.data.media.video import VideoHeader

LIMITS = MediaLimits(tokens_per_tile=4, tile_size=28, min_tiles=1, max_tiles=12, max_frames=40, max_fps=1, sampler="uniform")


def draw(rng) -> Measured | tuple[str, bool]:
    """A row with any number of turns, pictures and videos, or one that was skipped."""
    if rng.random() < 0.1:
        return "p.png: no such file", True
    turns = int(rng.integers(2, 9))
    images, videos = rng.poisson(0.4, turns), rng.poisson(0.2, turns)
    return Measured(
        turn_tokens=tuple(rng.integers(1, 60, turns).tolist()),
        turn_images=tuple(images.tolist()),
        turn_videos=tuple(videos.tolist()),
        turn_answers=tuple(place % 2 == 1 for place in range(turns)),
        sizes=tuple((int(w), int(h)) for w, h in rng.integers(10, 200, (images.sum(), 2))),
        videos=tuple(VideoHeader(bool(rng.random() < 0.5), int(rng.integers(1, 2000)), 10.0) for _ in range(videos.sum())),
    )


@pytest.mark.parametrize("seed", range(4))
def test_every_row_as_if_it_were_alone(tmp_path, seed):
    rng = np.random.default_rng(seed)
    found = [draw(rng) for _ in range(120)]
    batch = make_batch(row_columns((100 * number, 90, number + 1), bytes(16), one) for number, one in enumerate(found))
    def stamp():
        return SourceStamp("d.jsonl", 0, 0, "")

    head = write_index(tmp_path / "d.parquet", [batch], stamp, rows_path="d.jsonl", is_array=False)
    rows = rng.permutation(120)[:100]
    settings = FitSettings(seq_length=300, max_images=3, limits=LIMITS)
    with ColumnWriter(tmp_path / "columns") as writer:
        skipped = fit_file(writer, tmp_path / "d.parquet", head, rows, source_id=2, source="s", file_id=1, settings=settings)
    index = SampleIndex.open(tmp_path / "columns")
    seen, reasons = 0, {int(item.where.rpartition(":")[2]) - 1: item.reason for item in skipped}
    shrunk = 0
    for row in sorted(rows.tolist()):
        one = found[row]
        if isinstance(one, tuple):
            assert reasons[row] == one[0]
            continue
        try:
            fitted = fit_sample(one, seq_length=300, max_images=3, limits=LIMITS)
        except MediaError as error:
            assert reasons[row] == error.reason
            continue
        shrunk += fitted.num_messages < len(one.turn_tokens) or any(limit < 40 for limit in fitted.media.frame_limits)
        assert (index.offsets[seen], index.places[seen], index.source_ids[seen]) == (100 * row, row + 1, 2)
        assert (index.num_tokens[seen], index.num_tiles[seen]) == (fitted.num_tokens, fitted.media.num_tiles)
        assert index.num_messages[seen] == fitted.num_messages and tuple(index.grids(seen)) == fitted.media.grids
        kept = len(fitted.media.frame_limits)
        assert index.videos(seen) == list(zip(one.videos[:kept], fitted.media.frame_limits))
        seen += 1
    assert seen == len(index) and len(skipped) == 100 - seen and shrunk > 3 and 0 < seen < 100
    assert np.asarray(index.offsets)[index.draws].tolist() == [100 * row for row in rows if row not in reasons]
