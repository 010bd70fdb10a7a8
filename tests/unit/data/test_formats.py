"""Adapters: tar shards, Parquet columns, comics and films, one written by docs/data.md; each names file, row and field of what is wrong."""

import io
import json
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from mindspeed_vita.config import recipe_from_dict
from mindspeed_vita.data.checking import check_mixture
from mindspeed_vita.data.formats import adapter_for, register_format
from mindspeed_vita.data.media.members import read_member
from mindspeed_vita.data.media.paths import MediaError, resolve
from mindspeed_vita.hf.tiling import image_tiles

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text()


def png(image):
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()


def write_shard(path, members, mode="w"):
    with tarfile.open(path, mode) as shard:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return str(path)


def conversation(*contents):
    return [{"from": "human" if place % 2 == 0 else "gpt", "value": text} for place, text in enumerate(contents)]


def one_source(world, path, **entry):
    world.mixture(only={"ratio": 1, "data_paths": [path], **entry})
    return world.build()


def pack_order(data):
    """(number of the row, sample's first tile in the pack) of each sample of pack 0."""
    pack = data[0]
    first = pack.tile_first_token
    tiles = [int(((first >= a) & (first < b)).sum()) for a, b in zip(pack.sample_cu[:-1], pack.sample_cu[1:])]
    starts = np.concatenate([[0], np.cumsum(tiles)])
    return {int(data.index.places[sample]): pack.tiles_NCHW[a:b].numpy() for sample, a, b in zip(pack.sample_ids, starts[:-1], starts[1:])}


@pytest.fixture
def shard(world, picture):
    wide, small = png(picture(60, 30)), png(picture(28, 28))
    members = [
        ("a/one.json", json.dumps({"conversations": conversation("<image>What?", "A cat.")}).encode()),
        ("a/one.jpg", wide),
        ("two.1.png", wide),
        ("two.0.png", small),
        ("two.json", json.dumps({"messages": [{"role": "user", "content": "Both?"}, {"role": "assistant", "content": "Yes."}]}).encode()),
        ("three.png", small),
        ("three.txt", "Ünïcode caption.".encode()),
        ("four.json", json.dumps({"conversations": conversation("A?", "B.")}).encode()),
    ]
    return write_shard(world.folder / "part-000.tar", members)


def test_a_tar_shard_gives_the_pictures_that_lie_in_it(world, picture, shard):
    data = one_source(world, shard)
    wide, small = (image_tiles(picture(*size), tile_size=28)[0] for size in ((60, 30), (28, 28)))
    tiles = pack_order(data)
    assert not data.skipped and sorted(tiles) == [1, 2, 3, 4]
    assert np.array_equal(tiles[1], wide) and np.array_equal(tiles[3], small) and len(tiles[4]) == 0
    assert np.array_equal(tiles[2], np.concatenate([small, wide])), "KEY.0 before KEY.1, wherever they stand"
    rows = list(adapter_for(shard)(shard))
    assert rows[1]["messages"][0]["content"] == "<image>\n<image>\nBoth?" and rows[2]["messages"][1]["content"] == "Ünïcode caption."


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("k.jpg", b"x")], r"s\.tar: item 1 \(k\): found fields of pictures only; expected json"),
        ([("k.json", b"{}")], r"s\.tar: item 1 \(k\): found keys \[\], expected a list of turns under 'messages' or"),
        ([("k.json", b"[1]")], r"item 1 \(k\): json: found list, expected an object"),
        ([("a.txt", b"x"), ("k.json", b"{")], r"item 2 \(k\): json: found no JSON"),
        ([("k.json", b'{"messages": "x"}')], r"item 1 \(k\): messages: found str, expected a list of turns"),
        ([("k.txt", b"\xff")], r"item 1 \(k\): k\.txt: is not UTF-8"),
        ([("k.json", b'{"messages": [{"role": "bot", "content": "x"}]}')], r"s\.tar: item 1 \(k\): messages\[0\]: found role 'bot'"),
    ],
)
def test_a_bad_shard_names_file_sample_and_field(world, members, message):
    path = write_shard(world.folder / "s.tar", members)
    with pytest.raises(ValueError, match=message):
        one_source(world, path)
    world.mixture(only={"ratio": 1, "data_paths": [path]})
    (checked,) = check_mixture(world.config())
    assert len(checked.problems) == 1, "vita data check says the same"


def test_compressed_and_cut_shards_are_refused(world):
    member = [("k.txt", b"x" * 4000)]
    for name, mode in (("z.tar", "w:gz"), ("cut.tar", "w")):
        path = Path(write_shard(world.folder / name, member, mode))
        if name == "cut.tar":
            path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(ValueError, match=rf"{name}: is no whole, uncompressed tar file"):
            one_source(world, str(path))


PAIR = [{"user": "x", "assistant": "y"}]


def write_parquet(path, table, **options):
    pq.write_table(pa.Table.from_pylist(table), path, **options)
    return str(path)


def hub_rows(picture):
    wide, small = png(picture(60, 30)), png(picture(28, 28))
    return [
        {"images": [{"bytes": wide, "path": None}], "texts": [{"user": "What?", "assistant": "A cat.", "source": "s"}] * 2},
        {"images": [{"bytes": small, "path": "x.png"}, {"bytes": wide, "path": None}], "texts": [{"user": "Both?", "assistant": "Yes."}]},
        {"images": [], "texts": [{"user": "A?", "assistant": "B."}]},
        {"images": [{"bytes": small, "path": None}], "texts": [{"user": "<image>Small?", "assistant": "It is."}]},
    ]


@pytest.mark.parametrize("row_group_size", [1, 2, 100])
def test_parquet_columns_give_the_pictures_that_lie_in_them(world, picture, row_group_size):
    data = one_source(world, write_parquet(world.folder / "p.parquet", hub_rows(picture), row_group_size=row_group_size))
    wide, small = (image_tiles(picture(*size), tile_size=28)[0] for size in ((60, 30), (28, 28)))
    tiles = pack_order(data)
    assert not data.skipped and sorted(tiles) == [1, 2, 3, 4] and len(tiles[3]) == 0
    assert np.array_equal(tiles[1], wide) and np.array_equal(tiles[2], np.concatenate([small, wide])) and np.array_equal(tiles[4], small)


def test_parquet_with_one_picture_a_row_and_conversations(world, picture):
    picture(28, 28).save(world.folder / "beside.png")
    rows = [
        {"id": "a", "image": {"bytes": png(picture(60, 30)), "path": "a.png"}, "conversations": conversation("<image>\nWhat?", "A cat.")},
        {"id": "b", "image": {"bytes": None, "path": "beside.png"}, "conversations": conversation("<image>\nWhat?", "A dog.")},
        {"id": "c", "image": None, "conversations": conversation("A?", "B.")},
    ]
    tiles = pack_order(one_source(world, write_parquet(world.folder / "one.parquet", rows)))
    assert [len(tiles[row]) for row in (1, 2, 3)] == [3, 1, 0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"caption": "x"}], r"b\.parquet: found columns caption; expected turns under one of messages, conversations"),
        ([{"texts": [{"user": "x", "assistant": None}]}], r"b\.parquet: item 1: texts\[0\]\.assistant: found no text"),
        ([{"messages": []}, {"messages": None}], r"b\.parquet: item 1: found keys .*expected a list of turns"),
        ([{"image": {"bytes": None, "path": None}, "texts": PAIR}], r"item 1: image\[0\]: found dict without bytes"),
        ([{"image": 7, "texts": PAIR}], r"b\.parquet: item 1: image\[0\]: found int without bytes or path"),
    ],
)
def test_a_bad_parquet_file_names_row_and_column(world, rows, message):
    with pytest.raises(ValueError, match=message):
        one_source(world, write_parquet(world.folder / "b.parquet", rows))


def test_text_of_a_parquet_file_that_is_not_utf_8_is_named_with_its_row(world):
    rows = [{"texts": [{"user": "a", "assistant": "b"}]}, {"texts": [{"user": "marked", "assistant": "b"}]}]
    path = write_parquet(world.folder / "b.parquet", rows, compression="none", use_dictionary=False)
    content = (world.folder / "b.parquet").read_bytes()
    (world.folder / "b.parquet").write_bytes(content.replace(b"marked", b"m\xffrked"))
    with pytest.raises(ValueError, match=r"b\.parquet: item 2: found bytes that are not UTF-8 \(invalid start byte at byte 1 of a text"):
        one_source(world, path)


def test_files_that_are_none_are_named(world):
    (world.folder / "x.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(ValueError, match=r"x\.parquet: cannot be read as Parquet"):
        one_source(world, str(world.folder / "x.parquet"))
    with pytest.raises(ValueError, match=r"dataset\.only\.format: found 'arrow', expected one of json, webdataset, parquet"):
        one_source(world, str(world.folder / "x.parquet"), format="arrow")


def test_references_stay_inside_the_root_and_inside_the_file(world, picture, shard):
    reference = list(adapter_for(shard)(shard))[0]["images"][0]
    container, member = resolve(reference, str(world.folder)).split("!/")
    assert container == shard and Image.open(read_member(container, member, 1 << 20)).size == (60, 30)
    (world.folder / "inner").mkdir()
    with pytest.raises(MediaError) as error:
        resolve(f"../{reference}", str(world.folder / "inner"))
    assert "lies outside the media root" in error.value.reason
    for wrong, reason in (
        ("512+99999999/a.png", "allows"),
        ("10+900000/a.png", "the shard changed"),
        ("a.png", "is no reference into a tar or Parquet file"),
    ):
        with pytest.raises(MediaError) as error:
            read_member(container, wrong, 1 << 20)
        assert reason in error.value.reason
    parquet = write_parquet(world.folder / "p.parquet", hub_rows(picture))
    for wrong, reason in (("images/9/0", "row 9 of 4"), ("images/0/5", "holds no such picture"), ("x", "is no reference into a tar")):
        with pytest.raises(MediaError) as error:
            read_member(parquet, wrong, 1 << 20)
        assert reason in error.value.reason


def test_a_shard_that_changes_after_indexing_masks_its_samples(world, picture, shard):
    data = one_source(world, shard)
    content = bytearray(Path(shard).read_bytes())
    offset = int(re.search(r"!/(\d+)\+", list(adapter_for(shard)(shard))[0]["images"][0])[1])
    content[offset + 40 : offset + 200] = bytes(160)
    Path(shard).write_bytes(content)
    pack = data[0]
    assert [failure.sample_id for failure in pack.failures] == [s for s in pack.sample_ids.tolist() if data.index.places[s] == 1]


def test_a_comic_of_large_pages_is_one_sample(world, picture, say):
    """Comic-9K's kind: dozens of pages and one synopsis, in the published schema; what exceeds a pack loses tiles, not pages."""
    pages = [f"book/{number}.jpg" for number in range(1, 25)]
    (world.folder / "book").mkdir()
    for number, page in enumerate(pages):
        picture(400 + number, 600).save(world.folder / page)
    row = {"messages": say("<image>" * 24 + "Summarise.", "A red car drives by, then stops. " * 5), "images": pages}
    data = world.build([row], seq_length=2048, max_images=64)
    full = int(data.index.num_tiles[0])
    assert not data.skipped and full > 24 and len(data[0].tiles_NCHW) == full
    tight = world.build([row], seq_length=512, max_images=64)
    assert not tight.skipped and 24 <= int(tight.index.num_tiles[0]) < full
    assert "found 24 pictures, data.max_images allows 10" in str(pytest.raises(ValueError, world.build, [row], max_images=10).value)


def test_a_film_of_thousands_of_frames_is_one_sample(world, say):
    """MovieNet-Summary's kind: a folder of key frames named by shot, a synopsis; frames in natural order, spread over the whole film."""
    folder = world.folder / "240P" / "tt0047396"
    folder.mkdir(parents=True)
    for number in range(2000):
        Image.new("RGB", (32, 18), (number % 250, number // 250 * 30, 7)).save(folder / f"shot_{number // 3}_img_{number % 3}.png")
    row = {"messages": say("<video>\nSummarise the film.", "A red car drives by. " * 10), "videos": ["240P/tt0047396"]}
    data = world.build([row], seq_length=2048, max_frames=4096)
    (header, limit) = data.index.videos(0)[0]
    frames = int(data.index.num_tiles[0])
    assert header.num_frames == 2000 and not data.skipped and 250 < frames < 400, "as many frames as the pack has room for"
    centre = data[0].tiles_NCHW[:, :2, 14, 14].numpy().astype(int)
    numbers = [int(red + (green // 30) * 250) for red, green in centre]
    assert numbers == sorted(numbers) and numbers[0] == 0 and numbers[-1] > 2000 - 2 * 2000 // frames


def page_block(language, holding):
    return next(text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if holding in text)


def test_an_adapter_written_by_the_page(world, picture, monkeypatch):
    (world.folder / "my_formats.py").write_text(page_block("python", "register_format"))
    monkeypatch.syspath_prepend(str(world.folder))
    picture(28, 28).save(world.folder / "p.png")
    lines = [{"question": "What?", "answer": "A cat.", "picture": "p.png"}, {"question": "A?", "answer": "B."}]
    quiz = world.folder / "quiz.txt"
    quiz.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe_from_dict(yaml.safe_load(page_block("yaml", "plugins")))
    entry = yaml.safe_load(page_block("yaml", "question_answer"))["dataset"]["quiz"]
    world.mixture(quiz={**entry, "data_paths": [str(quiz)]})
    tiles = pack_order(world.build())
    assert [len(tiles[row]) for row in (1, 2)] == [1, 0]
    quiz.write_text(json.dumps(lines[1]) + "\n" + json.dumps({"question": 3}) + "\n")
    with pytest.raises(ValueError, match=r"quiz\.txt: item 2: question: found 3, expected text"):
        world.build()
    sys.modules.pop("my_formats")


def test_a_name_is_given_once(world):
    def rows(path):
        yield {"messages": {1, 2}}

    register_format("test_sets", rows)
    register_format("test_sets", rows)
    with pytest.raises(ValueError, match="format 'json' is registered already"):
        register_format("json", rows)
    (world.folder / "x").write_text("")
    with pytest.raises(ValueError, match=r"x: item 1: the adapter gave what is no JSON \(.*set.*\)"):
        one_source(world, str(world.folder / "x"), format="test_sets")
