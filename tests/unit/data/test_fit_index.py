"""Fitting by the column gives for every row what fitting it alone gives."""

import numpy as np
import pytest

from mindspeed_vita.data.columns import ColumnWriter, SampleIndex
from mindspeed_vita.data.fit_index import DrawnFile, FitSettings, Fitter
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


@pytest.mark.parametrize(
    ("seed", "at_a_time", "sizes"), [(0, 1 << 16, [120]), (1, 1, [120]), (2, 1 << 16, [40, 1, 79]), (3, 50, [40, 1, 79])]
)
def test_every_row_as_if_it_were_alone(tmp_path, monkeypatch, seed, at_a_time, sizes):
    monkeypatch.setattr("mindspeed_vita.data.fit_index._AT_A_TIME", at_a_time)
    rng = np.random.default_rng(seed)
    found = [draw(rng) for _ in range(120)]
    settings = FitSettings(seq_length=300, max_images=3, limits=LIMITS)
    drawn, first = [], 0
    with ColumnWriter(tmp_path / "columns") as writer:
        fitter = Fitter(writer, settings)
        for file_id, size in enumerate(sizes):
            numbers = range(first, first + size)
            batch = make_batch(row_columns((100 * number, 90, number + 1), bytes(16), found[number]) for number in numbers)
            head = write_index(
                tmp_path / f"{file_id}.parquet", [batch], lambda: SourceStamp("d.jsonl", 0, 0, ""), rows_path="d.jsonl", is_array=False
            )
            rows = rng.permutation(size)[: max(1, size * 5 // 6)]
            drawn.append((rows + first).tolist())
            fitter.add(DrawnFile(tmp_path / f"{file_id}.parquet", head, rows, 2, "s", file_id))
            first += size
        skipped = fitter.flush()
        assert not fitter.flush(), "each is returned once"
    index = SampleIndex.open(tmp_path / "columns")
    owners = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.concatenate(drawn)
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
        assert index.file_ids[seen] == owners[row]
        seen += 1
    assert seen == len(index) and len(skipped) == len(rows) - seen and shrunk > 3 and 0 < seen < len(rows)
    assert np.asarray(index.offsets)[index.draws].tolist() == [100 * row for row in rows if row not in reasons]
