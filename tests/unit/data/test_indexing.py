"""The index on disk: made once, over processes or alone, again only where a file changed, and never read half written."""

import io
import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mindspeed_vita.data import indexing, row_batches
from mindspeed_vita.data.columns import SampleIndex
from mindspeed_vita.data.crew import Crew
from mindspeed_vita.data.index_parts import Part
from mindspeed_vita.data.measure import Measurer
from mindspeed_vita.data.prepare import index_folder, index_mixture
from mindspeed_vita.data.rows import Row
from mindspeed_vita.data.tokenizer import load_tokenizer


@pytest.fixture
def measured(monkeypatch):
    """Counts samples measured in this process."""
    seen = []
    original = Measurer.measure_all
    monkeypatch.setattr(Measurer, "measure_all", lambda self, samples, root: seen.extend(samples) or original(self, samples, root))
    return seen


@pytest.fixture
def files(world, picture, clip, say):
    picture(60, 30).save(world.folder / "p.png")
    clip(world.folder / "c.mp4", 30, 10)
    talks = [{"messages": say("x" * (number % 9) + "?", "Yes." * (1 + number % 4))} for number in range(40)]
    media = [{"messages": say("<image>?", "A."), "images": ["p.png"]}, {"messages": say("<video>?", "A."), "videos": ["c.mp4"]}]
    media += [{"messages": say("<image>?", "A."), "images": ["later.png"]}]
    world.mixture(talks={"data_paths": [world.rows("talks.jsonl", talks)]}, media={"data_paths": [world.rows("media.jsonl", media)]})
    return world


def columns(data):
    return {name: np.asarray(getattr(data.index, name)) for name in SampleIndex.__dataclass_fields__}


def test_an_unchanged_file_is_not_measured_again_and_a_changed_one_is(files, say, measured):
    first = files.build()
    assert len(measured) == 43 and len(first.skipped) == 1
    again = files.build()
    assert len(measured) == 43 and again.fingerprint == first.fingerprint
    assert all(np.array_equal(value, columns(again)[name]) for name, value in columns(first).items())
    files.rows("talks.jsonl", [{"messages": say("Quite", "new.")}])
    changed = files.build()
    assert len(measured) == 44 and changed.num_samples == 3 and changed.fingerprint != first.fingerprint


def test_stages_share_what_was_measured(files, measured):
    files.build(seq_length=256)
    other = files.build(seq_length=64, max_frames=2, max_tiles=1, resets=False)
    assert len(measured) == 43 and int(other.index.num_tokens.max()) <= 64


def test_a_touched_file_with_the_same_content_is_not_measured_again(files, measured):
    files.build()
    os.utime(files.folder / "talks.jsonl", (1, 1))
    files.build()
    assert len(measured) == 43


def test_a_picture_that_comes_later_is_found_when_the_index_is_asked_for(files, picture, measured):
    first = files.build()
    picture(28, 28).save(files.folder / "later.png")
    assert files.build().fingerprint == first.fingerprint, "a run that resumes keeps its samples"
    tokenizer = load_tokenizer(files.tokenizer_folder)
    index_mixture(files.config(), tokenizer, again=True)
    assert len(measured) == 46, "only the file with a skipped sample"
    data = files.build()
    assert not data.skipped and data.num_samples == 43 and data.fingerprint != first.fingerprint


def test_several_processes_measure_what_one_does(files, monkeypatch):
    alone = files.build(index=str(files.folder / "one"))
    monkeypatch.setattr(indexing, "_ALONE", 0)
    monkeypatch.setattr(row_batches, "_CHUNK", 7)
    together = files.build(index=str(files.folder / "two"), index_processes=2)
    assert together.fingerprint == alone.fingerprint
    assert all(np.array_equal(value, columns(together)[name]) for name, value in columns(alone).items())


def test_a_chunk_ends_at_its_bytes_or_at_its_rows(monkeypatch):
    monkeypatch.setattr(row_batches, "_CHUNK", 4)
    monkeypatch.setattr(row_batches, "_CHUNK_BYTES", 100)
    rows = [Row(0, place, b"x" * size) for place, size in enumerate([10] * 5 + [60, 60, 500, 1])]
    found = [[row.place for row in chunk.rows] for chunk in row_batches.chunks(rows, "d.jsonl", "", False)]
    assert found == [[0, 1, 2, 3], [4, 5, 6], [7], [8]]


def test_the_index_is_parquet_that_others_can_read(files):
    files.build()
    (path,) = index_folder(files.config()).glob("index/media-*.parquet")
    rows = pq.read_table(path).to_pylist()
    assert [row["media_kind"] for row in rows] == [[0], [1], []]
    assert (rows[0]["media_a"], rows[0]["media_b"], rows[1]["media_a"], rows[1]["media_fps"]) == ([60], [30], [30], [10.0])
    assert "no such file" in rows[2]["reason"] and rows[2]["media_at_fault"]
    lines = (files.folder / "media.jsonl").read_bytes()
    assert [json.loads(lines[row["offset"] : row["offset"] + row["size"]]) for row in rows][1]["videos"] == ["c.mp4"]


def test_a_bad_row_leaves_no_index_behind(world, say):
    path = world.rows("d.jsonl", [{"messages": say("A?", "B.")}])
    with open(path, "a") as file:
        file.write("{\n")
    world.mixture(only={"data_paths": [path]})
    with pytest.raises(ValueError, match=r"d\.jsonl:2: found no JSON"):
        world.build()
    assert not list(index_folder(world.config()).glob("**/*.parquet*"))


def test_a_source_whose_media_are_missing_stops_the_run_with_the_reasons(world, say):
    rows = [{"messages": say("<image>?", "A."), "images": [f"{number}.png"]} for number in range(11)]
    rows += [{"messages": say("A?", "B.")}] * 89
    message = r"source 'only' .* 11 of 100 drawn rows .*11 for their media.* allows 1: 11 \(11 x no such file.*`vita data index`"
    with pytest.raises(ValueError, match=message):
        world.build(rows)
    assert world.build(rows, failure_budget=0.11).num_samples == 89
    assert world.build(rows[1:]).num_samples == 89, "ten are free"


def test_repeats_do_not_widen_the_budget(world, say):
    rows = [{"messages": say("<image>?", "A."), "images": [f"{number}.png"]} for number in range(19)]
    path = world.rows("a.jsonl", rows + [{"messages": say("A?", "B.")}] * 81)
    world.mixture(often={"ratio": 20, "data_paths": [path]})
    with pytest.raises(ValueError, match=r"source 'often' .*19 of 100 drawn rows .* allows 1"):
        world.build()
    data = world.build(failure_budget=0.19)
    assert data.num_samples == 20 * 81 and data.failure_budget().samples == [81]


def test_faulty_rows_count_against_the_budget_and_those_that_do_not_fit_do_not(world, say):
    good, tag = {"messages": say("A?", "B.")}, {"messages": say("<image>?", "A.")}
    message = r"source 'only' .*39 of 40 drawn rows .*0 for their media, 39 for the row.*39 x found # <image> tags"
    with pytest.raises(ValueError, match=message):
        world.build([good] + [tag] * 39)
    assert world.build([good] * 30 + [tag] * 10).num_samples == 30, "ten are free"
    long = {"messages": say("x " * 400, "A.")}
    assert len(world.build([good] + [long] * 39, seq_length=64).skipped) == 39
    with pytest.raises(ValueError, match=r"source 'only' .* has no usable sample: .*all were skipped: 3 "):
        world.build([long] * 3, seq_length=64)


def test_plans_of_all_epochs_of_a_run_are_on_disk_and_equal_those_made_on_the_fly(files):
    settings = files.config()
    written = files.build()
    from mindspeed_vita.data.dataset import build_data

    data = build_data(settings, tokens_per_tile=4, tile_size=28, vocab_size=512, num_packs=3 * written.num_packs(0))
    folders = sorted(path.name for path in data.folder.glob("epoch_*"))
    assert folders[:3] == ["epoch_00000", "epoch_00001", "epoch_00002"] and len(folders) == 3
    for number in range(data.num_packs(0) + data.num_packs(1)):
        assert data.samples_of(number).tolist() == written.samples_of(number).tolist()
        tokens, tiles, squares = data.cost_of(number)
        lengths = np.asarray(data.index.num_tokens)[data.samples_of(number)].astype(float)
        assert (tokens, squares) == (lengths.sum(), (lengths**2).sum())
        assert tiles == np.asarray(data.index.num_tiles)[data.samples_of(number)].sum()


def test_settings_that_change_no_pack_share_a_plan(files, monkeypatch):
    monkeypatch.setattr("mindspeed_vita.data.media.readers.find_spec", lambda name: name)  # decord need not be installed
    base = files.build()
    changed = replace(files.config(), num_workers=3, prefetch=5, decode_seconds=5.0, video_reader="decord", failure_budget=0.5)
    from mindspeed_vita.data.dataset import build_data

    assert build_data(changed, tokens_per_tile=4, tile_size=28, vocab_size=512).folder == base.folder


def test_a_plain_file_is_hashed_while_its_rows_are_read(files, monkeypatch):
    from mindspeed_vita.data.index_file import file_content, read_head

    read = []
    monkeypatch.setattr(indexing, "file_content", lambda path: read.append(path) or file_content(path))
    files.build()
    (path,) = index_folder(files.config()).glob("index/talks-*.parquet")
    assert not read and read_head(path).content == file_content(str(files.folder / "talks.jsonl"))


def test_many_small_files_and_shards_are_indexed_over_processes_as_by_one(files, say, monkeypatch):
    names = [files.rows(f"{number}.jsonl", [{"messages": say("<image>?", "A."), "images": ["p.png"]}] * 3) for number in range(5)]
    files.mixture(few={"data_paths": [str(files.folder / "media.jsonl")]}, many={"data_paths": names})
    alone = files.build(index=str(files.folder / "one"))
    monkeypatch.setattr(indexing, "_MANY", 2)
    monkeypatch.setattr(indexing, "_index", lambda *_: pytest.fail("indexed in this process"))
    reported = []
    indexed = index_mixture(
        files.config(index=str(files.folder / "two"), index_processes=2),
        load_tokenizer(files.tokenizer_folder),
        progress=lambda *done: reported.append(done),
    )
    assert [head.path for _, some in indexed for _, head in some] == [str(files.folder / "media.jsonl"), *names]
    assert reported[-1] == ("6 files", 6, 6)
    monkeypatch.undo()
    together = files.build(index=str(files.folder / "two"), index_processes=2)
    assert together.fingerprint == alone.fingerprint
    assert all(np.array_equal(value, columns(together)[name]) for name, value in columns(alone).items())
    with open(names[3], "a") as file:
        file.write("{\n")
    monkeypatch.setattr(indexing, "_MANY", 2)
    with open(names[4], "a") as file:
        file.write("[\n")
    with pytest.raises(ValueError, match=r"3\.jsonl:4: found no JSON"):
        files.build(index=str(files.folder / "two"), index_processes=2)


def tables_of(world, picture, say, num_rows, group):
    """A Parquet file with small pictures inside, some of them damaged, in row groups."""
    content = io.BytesIO()
    picture(40, 30).save(content, "PNG")
    cells = [content.getvalue() if number % 5 else b"no picture" for number in range(num_rows)]
    rows = [{"messages": say("<image>?", "A" * (number % 7 + 1)), "image": {"bytes": cell}} for number, cell in enumerate(cells)]
    pq.write_table(pa.Table.from_pylist(rows), world.folder / "p.parquet", row_group_size=group)
    world.mixture(only={"data_paths": [str(world.folder / "p.parquet")]})
    return rows


def indexed_bytes(world, processes):
    """The files of a fresh index, by suffix."""
    settings = world.config(index=str(world.folder / "index"), index_processes=processes)
    shutil.rmtree(index_folder(settings), ignore_errors=True)
    index_mixture(settings, load_tokenizer(world.tokenizer_folder))
    found = {path.suffix: path.read_bytes() for path in (index_folder(settings) / "index").iterdir()}
    assert len(found) == len(list((index_folder(settings) / "index").iterdir()))
    return found


@pytest.fixture
def shared_out(monkeypatch):
    """Every file is large, and what depends on the clock is not."""
    monkeypatch.setattr(indexing, "_ALONE", 0)
    monkeypatch.setattr("mindspeed_vita.data.index_file.time", SimpleNamespace(time_ns=lambda: 1 << 61))


@pytest.mark.parametrize(("group", "processes"), [(1, 2), (7, 3), (1000, 2)])
def test_the_row_groups_of_a_parquet_file_are_shared_out_and_the_index_has_the_same_bytes(
    world, picture, say, shared_out, group, processes, monkeypatch
):
    tables_of(world, picture, say, 45, group)
    monkeypatch.setattr("mindspeed_vita.data.index_file._GROUP", 16)
    alone = indexed_bytes(world, 1)
    assert set(alone) == {".parquet", ".rows"}
    seen = []
    together = Crew.together
    monkeypatch.setattr(
        Crew, "together", lambda self, work, jobs, *rest, **more: together(self, work, seen.extend(jobs) or seen, *rest, **more)
    )
    assert indexed_bytes(world, processes) == alone
    parts = [number for part in seen if isinstance(part, Part) for number in part.numbers]
    assert parts == (list(range(-(-45 // group))) if group < 1000 else []), "one row group is measured by all, and read by one"
    assert len(pq.ParquetFile(io.BytesIO(alone[".parquet"])).read()) == 45


def test_a_large_jsonl_file_is_shared_out_and_the_index_has_the_same_bytes(world, picture, say, shared_out, monkeypatch):
    picture(60, 30).save(world.folder / "p.png")
    rows = [
        {"messages": say("<image>?", "A" * (number % 7 + 1)), "images": ["p.png" if number % 5 else "gone.png"]} for number in range(45)
    ]
    world.mixture(only={"data_paths": [world.rows("d.jsonl", rows)]})
    monkeypatch.setattr("mindspeed_vita.data.index_file._GROUP", 16)
    alone = indexed_bytes(world, 1)
    monkeypatch.setattr(row_batches, "_CHUNK", 7)
    assert indexed_bytes(world, 2) == alone


def test_a_bad_row_in_a_later_row_group_is_named_and_leaves_nothing_behind(world, picture, say, shared_out):
    rows = tables_of(world, picture, say, 20, 4)
    rows[13]["messages"] = []
    pq.write_table(pa.Table.from_pylist(rows), world.folder / "p.parquet", row_group_size=4)
    for processes in (1, 2):
        with pytest.raises(ValueError, match=r"p\.parquet: item 14: found keys"):
            indexed_bytes(world, processes)
        assert not list((world.folder / "index").rglob("*.*"))


def test_a_shard_larger_than_an_even_share_is_shared_out_where_it_has_parts(tmp_path, monkeypatch):
    sizes = {"a.parquet": 1000, "b.parquet": 10, "c.tar": 1000, "d.tar": 10}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(bytes(size))
    files = [indexing.FileToIndex(str(tmp_path / name), str(tmp_path)) for name in sizes]
    monkeypatch.setattr(indexing, "_ALONE", 20)
    assert [os.path.basename(file.source) for file in indexing._whole_files(files, 3)] == ["b.parquet", "c.tar", "d.tar"]
    assert indexing._whole_files(files, 1) == []
