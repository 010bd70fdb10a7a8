"""Pictures inside tar and Parquet files: the same bytes in any order of asking, and no more of the file than they need."""

import io
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mindspeed_vita.data.media import members
from mindspeed_vita.data.media.image import probe_picture
from mindspeed_vita.data.media.members import parquet_reference, read_member, tar_reference
from mindspeed_vita.data.media.paths import MediaError


def test_cells_come_right_in_any_order_and_over_several_row_groups(tmp_path):
    contents = [bytes([place]) * (place + 1) for place in range(100)]
    path = str(tmp_path / "p.parquet")
    pq.write_table(pa.table({"images": [[{"bytes": content, "path": None}] * 2 for content in contents]}), path, row_group_size=40)
    orders = (range(100), reversed(range(100)), np.random.default_rng(0).permutation(100).tolist(), [5, 5, 39, 40, 5, 99, 0])
    for order in orders:
        for row in order:
            member = parquet_reference(path, "images", row, 1).partition("!/")[2]
            assert read_member(path, member, 1000).read() == contents[row]
    with pytest.raises(MediaError, match="row 100 of 100"):
        read_member(path, "images/100/0", 1000)


def test_a_row_behind_the_picture_is_not_decoded(tmp_path, monkeypatch):
    path = str(tmp_path / "p.parquet")
    pq.write_table(pa.table({"image": [bytes(1000)] * 1000}), path, row_group_size=1000)
    taken = []
    iterate = pq.ParquetFile.iter_batches

    def counted(self, **options):
        for batch in iterate(self, **options):
            taken.append(len(batch))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    for row in (3, 4, 40, 41):
        read_member(path, f"image/{row}/0", 2000)
    assert taken == [members._ROWS] * 3


def test_the_header_of_a_picture_in_a_tar_is_read_without_its_pixels(tmp_path, monkeypatch):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    path = str(tmp_path / "s.tar")
    with tarfile.open(path, "w") as shard:
        for name in ("a.png", "b.png"):
            entry = tarfile.TarInfo(name)
            entry.size = len(file.getvalue())
            shard.addfile(entry, io.BytesIO(file.getvalue()))
    with tarfile.open(path) as shard:
        references = [tar_reference(path, member.offset_data, member.size, member.name) for member in shard]
    read = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *rest: (read.append(pread(*rest)), read[-1])[1])
    assert [probe_picture(reference) for reference in references] == [(400, 300)] * 2
    assert 0 < sum(map(len, read)) < 64 << 10 < len(file.getvalue())
    container, _, member = references[1].partition("!/")
    window = read_member(container, member, 1 << 30)
    assert window.read() == file.getvalue() and window.read() == b""
    assert (window.seek(-5, os.SEEK_END), window.read()) == (len(file.getvalue()) - 5, file.getvalue()[-5:])
    window.close()
    os.truncate(path, 700)
    with pytest.raises(MediaError, match=r"ends after 188 of [\d,]+ bytes; the shard changed since"):
        read_member(container, references[0].partition("!/")[2], 1 << 30)
