"""A tar shard is read whole or refused, whatever is damaged; its layouts mean what a person means by them."""

import io
import json
import os
import tarfile

import numpy as np
import pytest

from mindspeed_vita.data.checking import check_mixture
from mindspeed_vita.data.formats import adapter_for
from mindspeed_vita.data.media.file_part import FilePart
from mindspeed_vita.data.media.limits import DecodeSettings
from mindspeed_vita.data.media.members import tar_part
from mindspeed_vita.data.media.paths import MediaError, resolve
from mindspeed_vita.data.media.video import VideoHeader, probe_video, video_tiles
from mindspeed_vita.hf.frames import list_frames
from mindspeed_vita.hf.tiling import image_tiles
from tests.unit.data.test_formats import one_source, pack_order, png, write_parquet, write_shard

TURNS = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]


def rows_of(path, name=""):
    return list(adapter_for(str(path), name)(str(path)))


def small_shard(path, format=tarfile.GNU_FORMAT):
    members = [(f"{number}.json", json.dumps({"messages": TURNS}).encode()) for number in range(2)]
    members.insert(1, ("0.png", b"picture"))
    members.append(("x" * 120 + ".txt", b"A long name needs a header more."))
    with tarfile.open(path, "w", format=format) as shard:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return path


def outcome(path, content, whole):
    """What a damaged shard (None: as it lies there) gives: all rows, or a refusal that names it."""
    if content is not None:
        path.write_bytes(content)
    try:
        found = rows_of(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: "), error
        return "refused"
    assert found == whole
    return "whole"


def test_every_cut_gives_the_whole_shard_or_a_refusal(tmp_path):
    path = small_shard(tmp_path / "s.tar")
    content, whole = path.read_bytes(), rows_of(path)
    assert len(whole) == 3
    end = -(-len(content.rstrip(b"\0")) // 512) * 512 + 1024
    for cut in [*range(len(content) - 1, end, -61), *range(end, -1, -1)]:
        os.truncate(path, cut)
        assert outcome(path, None, whole) == ("refused" if cut < end else "whole"), cut


def test_every_flipped_bit_of_a_header_gives_the_whole_shard_or_a_refusal(tmp_path):
    path = small_shard(tmp_path / "s.tar")
    content, whole = path.read_bytes(), rows_of(path)
    with tarfile.open(path) as shard:
        headers = [member.offset for member in shard]
    with tarfile.open(path) as shard:
        last = shard.getmembers()[-1]
    headers.append(last.offset_data - 512)  # after the long name stands a header of its own
    refused = 0
    for header in headers:
        for place in range(header, header + 512):
            damaged = bytearray(content)
            damaged[place] ^= 1 << place % 8
            refused += outcome(path, bytes(damaged), whole) == "refused"
    assert refused > 0.98 * len(headers) * 512


def test_a_flipped_bit_after_the_end_is_no_reason_to_lose_rows(tmp_path):
    path = small_shard(tmp_path / "s.tar")
    content, whole = path.read_bytes(), rows_of(path)
    end = len(content.rstrip(b"\0"))
    for place in range(end + 512, len(content), 97):
        damaged = bytearray(content)
        damaged[place] ^= 4
        outcome(path, bytes(damaged), whole)


def test_a_damaged_shard_is_found_by_the_check_too(world):
    path = small_shard(world.folder / "s.tar")
    damaged = bytearray(path.read_bytes())
    with tarfile.open(path) as shard:
        damaged[shard.getmembers()[2].offset + 5] ^= 1
    path.write_bytes(damaged)
    world.mixture(only={"ratio": 1, "data_paths": [str(path)]})
    (checked,) = check_mixture(world.config())
    assert len(checked.problems) == 1 and "is no whole, uncompressed tar file (found no whole header at byte" in str(checked.problems[0])


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_other_kinds_of_tar_are_read(tmp_path, format):
    members = [("ä" * 40 + ".txt", b"one"), ("b.txt", b"two")]
    with tarfile.open(tmp_path / "s.tar", "w", format=format) as shard:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    assert [row["messages"][1]["content"] for row in rows_of(tmp_path / "s.tar")] == ["one", "two"]


def test_concatenated_shards_are_read_whole(world, picture):
    """Their samples may have the same names; offsets count from the start of the file."""
    parts = []
    for name, size in (("a.tar", (60, 30)), ("b.tar", (28, 28))):
        members = [("0.png", png(picture(*size))), ("0.txt", name.encode())]
        write_shard(world.folder / name, members)
        parts.append((world.folder / name).read_bytes())
    both = world.folder / "both.tar"
    both.write_bytes(b"".join(parts))
    tiles = pack_order(one_source(world, str(both)))
    for row, size in ((1, (60, 30)), (2, (28, 28))):
        assert np.array_equal(tiles[row], image_tiles(picture(*size), tile_size=28)[0])
    both.write_bytes(parts[0] + parts[1][:700])
    with pytest.raises(ValueError, match=r"both\.tar: is no whole, uncompressed tar file"):
        rows_of(both)
    both.write_bytes(parts[0] + b"no archive".ljust(512, b"\0"))
    with pytest.raises(ValueError, match=r"both\.tar: is no whole, uncompressed tar file \(found no whole header at byte"):
        rows_of(both)


def names_of(row, kind="images"):
    return [reference.split("/", 2)[2] for reference in row[kind]]


@pytest.mark.parametrize(
    ("named", "field"),
    [
        (["b/k.1.png", "b/k.0.png"], "images"),
        (["k.1.png", "k.0.png"], "images"),
        (["1.png", "0.png"], "images"),
        (["/data/coco/k.1.png", "/data/coco/k.0.png"], "image"),
    ],
)
def test_pictures_follow_the_order_that_the_json_names(tmp_path, named, field):
    members = [("b/k.0.png", b"0"), ("b/k.1.png", b"1"), ("b/k.json", json.dumps({"messages": TURNS, field: named}).encode())]
    (row,) = rows_of(write_shard(tmp_path / "s.tar", members))
    assert names_of(row) == ["b/k.1.png", "b/k.0.png"]


def test_names_that_the_shard_does_not_hold_are_refused(tmp_path):
    members = [("k.0.png", b"0"), ("k.1.png", b"1"), ("k.json", json.dumps({"messages": TURNS, "images": ["x.png", "0.png"]}).encode())]
    with pytest.raises(ValueError, match=r"s\.tar: item 1 \(k\): json: images: found 'x\.png', expected one of .* k\.0\.png, k\.1\.png"):
        rows_of(write_shard(tmp_path / "s.tar", members))
    members = [("k.png", b"0"), ("k.json", json.dumps({"messages": TURNS, "image": "coco/000000033471.jpg"}).encode())]
    assert names_of(rows_of(write_shard(tmp_path / "s.tar", members))[0]) == ["k.png"], "one picture, one name"


def test_img2datasets_layout(tmp_path):
    record = {"url": "http://host/a.jpg", "caption": "A cat.", "key": "000000001", "status": "success", "error_message": None, "width": 9}
    members = [("000000001.jpg", b"x"), ("000000001.json", json.dumps(record).encode()), ("000000001.txt", b"A cat.")]
    (row,) = rows_of(write_shard(tmp_path / "s.tar", members))
    assert names_of(row) == ["000000001.jpg"]
    assert [turn["content"] for turn in row["messages"]] == ["<image>", "A cat."]


@pytest.mark.parametrize(
    "clutter",
    ["._k.jpg", "b/._k.jpg", "__MACOSX/b/k.jpg", "@eaDir/k.jpg/t.jpg", ".ipynb_checkpoints/k-checkpoint.json", ".DS_Store", "Thumbs.db"],
)
def test_what_file_managers_and_notebooks_leave_is_no_sample(tmp_path, clutter):
    members = [("k.jpg", b"x"), (clutter, b"y"), ("k.json", json.dumps({"messages": TURNS}).encode())]
    (row,) = rows_of(write_shard(tmp_path / "s.tar", members))
    assert names_of(row) == ["k.jpg"]


def test_a_dataset_json_describes_the_shard(tmp_path):
    about = ("dataset.json", json.dumps({"name": "cats", "shardlist": []}).encode())
    rows = rows_of(write_shard(tmp_path / "s.tar", [about, ("k.txt", b"One."), ("sub/" + about[0], about[1])]))
    assert len(rows) == 1
    turns = ("dataset.json", json.dumps({"messages": TURNS}).encode())
    assert len(rows_of(write_shard(tmp_path / "s.tar", [turns]))) == 1, "with turns it is a sample"


def test_suffixes_in_upper_case(world, picture):
    members = [("k.PNG", png(picture(28, 28))), ("k.JSON", json.dumps({"messages": TURNS}).encode())]
    path = write_shard(world.folder / "S.TAR", members)
    tiles = pack_order(one_source(world, path))
    assert np.array_equal(tiles[1], image_tiles(picture(28, 28), tile_size=28)[0])
    frames = world.folder / "frames"
    for name in ("shot1.JPG", "shot2.jpeg", "shot10.PNG", "._shot1.JPG", "png", ".ipynb_checkpoints/shot1.png", "@eaDir/a.jpg"):
        (frames / name).parent.mkdir(parents=True, exist_ok=True)
        (frames / name).write_bytes(b"")
    assert [os.path.relpath(path, frames) for path in list_frames(str(frames))] == ["shot1.JPG", "shot2.jpeg", "shot10.PNG"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.txt", b"x"), ("b.txt", b"y"), ("a.jpg", b"z")], r"item 3 \(a\): found files of this name at two places"),
        ([("a.json", b"{}"), ("a.x.json", b"{}")], r"item 1 \(a\): found a\.json and a\.x\.json, expected one json"),
        ([("a.png", b"x"), ("a.json", b'{"images": {"a": 1}}')], r"item 1 \(a\): json: images: found dict, expected the names of files"),
    ],
)
def test_samples_that_are_not_in_one_piece_are_refused(tmp_path, members, message):
    with pytest.raises(ValueError, match=r"s\.tar: " + message):
        rows_of(write_shard(tmp_path / "s.tar", members))


def test_a_hard_link_is_the_file_and_a_symbolic_link_is_refused(tmp_path):
    def shard(kind):
        with tarfile.open(tmp_path / "s.tar", "w") as out:
            for name, content in (("a.jpg", b"picture"), ("a.txt", b"one"), ("b.txt", b"two")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))
            link = tarfile.TarInfo("b.jpg")
            link.type, link.linkname = kind, "a.jpg"
            out.addfile(link)
        return rows_of(tmp_path / "s.tar")

    first, second = shard(tarfile.LNKTYPE)
    assert first["images"][0].split("/")[1] == second["images"][0].split("/")[1]
    with pytest.raises(ValueError, match=r"s\.tar: .*'b\.jpg' is no plain file"):
        shard(tarfile.SYMTYPE)


def test_videos_inside_a_shard(world, clip, picture):
    clip(world.folder / "k.mp4", 40, 10)
    film = (world.folder / "k.mp4").read_bytes()
    turns = [{"role": "user", "content": "<video>What?"}, {"role": "assistant", "content": "Grey."}]
    members = [("a.png", png(picture(28, 28))), ("a.txt", b"A."), ("k.mp4", film), ("k.json", json.dumps({"messages": turns}).encode())]
    path = write_shard(world.folder / "s.tar", [*members, ("l.MP4", film), ("l.txt", b"A clip.")])
    header = probe_video("k.mp4", str(world.folder))
    data = one_source(world, path)
    assert not data.skipped and data.index.videos(1)[0][0] == header
    tiles = pack_order(data)
    numbers = header.sample(max_frames=8, max_fps=1.0, sampler="uniform")
    wanted = video_tiles(str(world.folder / "k.mp4"), header, numbers, tile_size=28, root=str(world.folder))
    assert np.array_equal(tiles[2], wanted) and np.array_equal(tiles[3], wanted) and len(tiles[1]) == 1
    reference = rows_of(path)[1]["videos"][0]
    with pytest.raises(MediaError) as error:
        settings = DecodeSettings(reader="decord")
        video_tiles(resolve(reference, str(world.folder)), header, [0], tile_size=28, root=str(world.folder), settings=settings)
    assert "data.video_reader=decord reads no videos inside shards" in error.value.reason
    with open(path, "r+b") as file:
        file.truncate(4000)
    with pytest.raises(MediaError) as error:
        probe_video(reference, str(world.folder))
    assert "the shard changed since it was indexed" in error.value.reason


def test_a_part_of_a_file_reads_like_a_file(tmp_path):
    (tmp_path / "whole").write_bytes(bytes(range(200)))
    with FilePart(str(tmp_path / "whole"), 50, 100, "part").open() as part:
        assert part.read(3) == bytes((50, 51, 52)) and part.tell() == 3
        assert part.seek(-2, os.SEEK_END) == 98 and part.read() == bytes((148, 149)) and part.read(1) == b""
        assert part.seek(10) == 10 and part.seek(5, os.SEEK_CUR) == 15 and part.read(1) == bytes((65,))
    with pytest.raises(MediaError):
        tar_part(str(tmp_path / "whole"), "images/0/0", 1000)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MediaError):
        tar_part(str(tmp_path / "pipe"), "0+10/a.mp4", 1000)
    assert VideoHeader(False, 1, 1.0).seconds == 1.0


def test_a_format_may_have_any_suffix(world, picture):
    """And media_root, which is for the other files of the mixture, does not move a shard's pictures."""
    (world.folder / "elsewhere").mkdir()
    members = [("k.png", png(picture(60, 30))), ("k.txt", b"A cat.")]
    row = {"images": [{"bytes": png(picture(60, 30)), "path": None}], "texts": [{"user": "What?", "assistant": "A cat."}]}
    wanted = image_tiles(picture(60, 30), tile_size=28)[0]
    write_shard(world.folder / "part.wds", members)
    write_parquet(world.folder / "part.data", [row])
    for name, format in (("part.wds", "webdataset"), ("part.data", "parquet")):
        world.mixture(only={"ratio": 1, "data_paths": [str(world.folder / name)], "format": format})
        assert np.array_equal(pack_order(world.build(media_root=str(world.folder / "elsewhere")))[1], wanted)


def test_shards_and_parquet_files_may_be_links_into_a_cache(world, picture):
    """As Hugging Face's cache has them; what else leads out of the folder stays refused."""
    blobs, snapshot = world.folder / "blobs", world.folder / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    write_shard(blobs / "b5a1", [("k.png", png(picture(60, 30))), ("k.txt", b"A cat.")])
    row = {"images": [{"bytes": png(picture(60, 30)), "path": None}], "texts": [{"user": "What?", "assistant": "A cat."}]}
    write_parquet(blobs / "c7d2", [row])
    wanted = image_tiles(picture(60, 30), tile_size=28)[0]
    for name, blob in (("part.tar", "b5a1"), ("part.parquet", "c7d2")):
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
        data = one_source(world, str(snapshot / name))
        assert not data.skipped and np.array_equal(pack_order(data)[1], wanted)
        (checked,) = check_mixture(world.config(), headers=True)
        assert not checked.problems
    root = str(snapshot / "part.tar")
    picture(5, 5).save(blobs / "p.png")
    (snapshot / "p.png").symlink_to("../../blobs/p.png")
    for outside in ("p.png", "part.parquet!/images/0/0", "../../blobs/b5a1!/512+7/k.png"):
        with pytest.raises(MediaError) as error:
            resolve(outside, root)
        assert "lies outside the media root" in error.value.reason
    picture(5, 5).save(snapshot / "own.png")
    assert resolve("own.png", root) == str(snapshot / "own.png")
