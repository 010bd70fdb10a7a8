"""Rows of JSONL and arrays: where a bad row stands is always said, and each is found again by its offset."""

import gzip
import json

import pytest

from mindspeed_vita.data.open_files import OpenFiles
from mindspeed_vita.data.rows import RowReader, iter_rows
from mindspeed_vita.data.sample import Message

ROW = {"messages": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}], "images": ["p.png"], "id": 7}


class Rows:
    """All rows of a file, read as training reads them: by offset, after one pass over the file."""

    def __init__(self, path) -> None:
        rows_path, is_array, rows = iter_rows(str(path), path.with_suffix(".rows"))
        self.rows = list(rows)
        self.reader = RowReader(str(path), rows_path, is_array, OpenFiles())

    def sample(self, row):
        return self.reader.sample(self.rows[row].offset, len(self.rows[row].text), self.rows[row].place)

    def where(self, row):
        return self.reader.where(self.rows[row].place)


def read_rows(path):
    return Rows(path)


def write(tmp_path, data, name="d.jsonl"):
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return tmp_path / name


def test_schema(tmp_path):
    sample = read_rows(write(tmp_path, json.dumps(ROW))).sample(0)
    assert sample.messages == (Message("user", "<image>\nA?"), Message("assistant", "B.")), "no turn has a tag: it goes before the question"
    assert sample.images == ("p.png",) and sample.videos == ()


def test_conversations_with_human_and_gpt(tmp_path):
    turns = [{"from": speaker, "value": text} for speaker, text in (("system", "S"), ("human", "A"), ("gpt", "B"))]
    row = {"conversations": turns, "images": None}
    sample = read_rows(write(tmp_path, json.dumps(row))).sample(0)
    assert [(turn.role, turn.content) for turn in sample.messages] == [("system", "S"), ("user", "A"), ("assistant", "B")]


@pytest.mark.parametrize(("given", "kept"), [(None, ()), ([], ()), (["p.png"], ("p.png",)), ([None, "p.png"], ("", "p.png"))])
def test_null_for_the_list_is_no_media_and_null_inside_is_a_gap(tmp_path, given, kept):
    row = {**ROW, "images": given, "videos": given}
    sample = read_rows(write(tmp_path, json.dumps(row))).sample(0)
    assert sample.images == sample.videos == kept


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_blank_lines_are_skipped_and_still_counted(tmp_path, ending):
    rows = read_rows(write(tmp_path, ending.join(["", json.dumps(ROW), "  ", json.dumps(ROW), ""])))
    assert [rows.where(row).rpartition(":")[2] for row in range(2)] == ["2", "4"]
    assert rows.sample(1).images == ("p.png",)


def test_arrays_byte_order_marks_and_gzip(tmp_path):
    text = json.dumps([ROW, ROW], indent=2).encode()
    for data, name in ((text, "a.json"), (b"\xef\xbb\xbf" + text, "b.json"), (gzip.compress(text), "c.json.gz")):
        rows = read_rows(write(tmp_path, data, name))
        assert len(rows.rows) == 2 and rows.where(1).endswith(f"{name}: item 2") and rows.sample(1).images == ("p.png",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"messages": [', r"d\.jsonl:2: found no JSON"),
        ("[1", r"d\.jsonl:2: found no JSON"),
        ("17", r"d\.jsonl:2: found int 17, expected an object"),
        ('{"caption": "x"}', r"d\.jsonl:2: found keys \['caption'\], expected a list of turns"),
        ('{"messages": []}', r"d\.jsonl:2: found keys \['messages'\]"),
        ('{"messages": ["x"]}', r"d\.jsonl:2: messages\[0\]: found str 'x'"),
        ('{"messages": [{"role": "bot", "content": ""}]}', r"d\.jsonl:2: messages\[0\]: found role 'bot', expected one of system, user"),
        ('{"messages": [{"role": [], "content": ""}]}', r"found role \[\], expected one of"),
        ('{"messages": [{"role": "user", "content": null}]}', r"d\.jsonl:2: messages\[0\]: found NoneType None as content"),
        ('{"messages": [{"role": "user", "content": [1]}]}', r"messages\[0\]: content\[0\]: found int 1, expected text"),
        ('{"messages": [{"role": "user", "content": ""}], "images": 3}', r"d\.jsonl:2: images: found int 3, expected a path"),
        ('{"messages": [{"role": "user", "content": ""}], "videos": [3]}', r"d\.jsonl:2: videos\[0\]: found int 3, expected a path"),
        (
            '{"messages": [{"role": "user", "content": "a\\ud800b"}]}',
            r"d\.jsonl:2: messages\[0\]: found half a character \('\\ud800' at 1\)",
        ),
        ('{"messages": [' + "[" * 100_000 + "]" * 100_000 + "]}", r"d\.jsonl:2: found JSON nested too deeply"),
        ('{"messages": [{"role": ' + "[" * 900 + "]" * 900 + "}]}", r"d\.jsonl:2: .*(nested too deeply|found role)"),
        ('{"id": ' + "1" * 5000 + "}", r"d\.jsonl:2: found no JSON \(Exceeds the limit"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path, row, message):
    rows = read_rows(write(tmp_path, json.dumps(ROW) + "\n" + row + "\n"))
    rows.sample(0)
    with pytest.raises(ValueError, match=message):
        rows.sample(1)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.jsonl: cannot be read \(No such file"):
        read_rows(tmp_path / "gone.jsonl")
    with pytest.raises(ValueError, match="damaged gzip file"):
        read_rows(write(tmp_path, gzip.compress(b"x" * 1000)[:-9], "cut.jsonl.gz"))
    with pytest.raises(ValueError, match=r"bytes that are not UTF-8"):
        read_rows(write(tmp_path, b'{"messages": "\xff\xfe"}')).sample(0)


def test_an_array_nested_too_deeply_names_the_file(tmp_path):
    for depth in (900, 100_000):
        with pytest.raises(ValueError, match=r"a\.json(: item 1)?: found .*"):
            read_rows(write(tmp_path, "[" * depth + "]" * depth, "a.json")).sample(0)


def test_cutting_after_a_turn_keeps_its_media():
    from mindspeed_vita.data.sample import Sample

    turns = (Message("user", "<image><video>"), Message("assistant", "A"), Message("user", "<image>"), Message("assistant", "B"))
    cut = Sample(turns, ("1", "2"), ("v",)).first_turns(2)
    assert (len(cut.messages), cut.images, cut.videos) == (2, ("1",), ("v",))
