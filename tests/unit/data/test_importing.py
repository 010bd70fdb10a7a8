"""`vita data import`: what is read, what the rows become, and what is refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path, PurePath

import pytest
import yaml
from PIL import Image

from mindspeed_vita.cli.main import main
from mindspeed_vita.config.recipe import DataConfig
from mindspeed_vita.data.checking import check_mixture
from mindspeed_vita.data.importing import Columns, import_data
from mindspeed_vita.data.importing.fields import Questions
from mindspeed_vita.data.importing.read import open_source


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder with four pictures."""
    folder = tmp_path / "photos"
    for name in ("cat.jpg", "dog.png", "more/bird.jpg", "more/fish.webp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), "red").save(folder / name)
    return folder


def rows_of(source: Path, output: Path, **options) -> list[dict]:
    """The rows that an import wrote, after its mixture passed `vita data check`."""
    done = import_data(source, output, **options)
    assert done.mixture is not None, done.problems
    data = DataConfig(mixture=str(done.mixture), media_root=done.media_root)
    (checked,) = check_mixture(data, headers=True)
    assert not checked.problems and checked.num_rows == done.num_good
    return [json.loads(line) for line in done.rows.read_text(encoding="utf-8").splitlines()]


def turns(row: dict) -> list[str]:
    return [message["content"] for message in row["messages"]]


@pytest.mark.parametrize(
    "name, text",
    [
        ("captions.csv", "image,caption\ncat.jpg,A cat.\nmore/bird.jpg,\"A bird, that\nsings.\"\n"),
        ("captions.csv", "\ufeffcaption;File_Name\r\nA cat.;cat.jpg\r\n\r\n\"A bird, that\nsings.\";more/bird.jpg\r\n"),
        ("captions.tsv", "path\ttext\ncat.jpg\tA cat.\nmore/bird.jpg\t\"A bird, that\nsings.\"\n"),
    ],
)
def test_a_table_gives_one_sample_a_line(photos, tmp_path, name, text):
    (photos / name).write_bytes(text.encode())
    for source, output in ((photos / name, "a"), (photos, "b")):  # the folder with one table in it is that table
        cat, bird = rows_of(source, tmp_path / output)
        assert cat == {
            "messages": [{"role": "user", "content": "<image>\nDescribe the picture."}, {"role": "assistant", "content": "A cat."}],
            "images": ["cat.jpg"],
        }
        assert turns(bird)[1] == "A bird, that\nsings." and bird["images"] == ["more/bird.jpg"]


def test_questions_come_from_the_table_or_in_turn(photos, tmp_path):
    table = photos / "t.csv"
    table.write_text("image,question,answer\ncat.jpg,What is <image>?,A cat.\ndog.png,,A dog.\nmore/bird.jpg,,A bird.\n")
    rows = rows_of(table, tmp_path / "out", questions=("One?", "Two?"))
    assert [turns(row)[0] for row in rows] == ["What is <image>?", "<image>\nOne?", "<image>\nTwo?"]


def test_columns_may_be_named(photos, tmp_path):
    table = photos / "t.csv"
    table.write_text("id,text,caption,file\n1,x,A cat.,cat.jpg\n")
    with pytest.raises(ValueError, match="the columns text and caption could both be the answer; say which with --answer-column"):
        import_data(table, tmp_path / "out")
    assert turns(rows_of(table, tmp_path / "out", columns=Columns(answer="caption"))[0])[1] == "A cat."
    with pytest.raises(ValueError, match="--answer-column words: no such column; found id, text, caption, file"):
        import_data(table, tmp_path / "new", columns=Columns(answer="words"))


def test_llava_rows_get_their_media_and_tags(photos, tmp_path):
    say = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A cat."}]
    tagged = [{"from": "human", "value": "Compare <image> and <image>."}, say[1]]
    content = [
        {"id": "1", "image": "cat.jpg", "conversations": say},
        {"image": ["cat.jpg", "dog.png"], "conversations": tagged},
        {"conversations": say},
        {"video": "more", "conversations": say},
        {"images": ["dog.png"], "messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "A dog."}]},
        {"file_name": "cat.jpg", "text": "A cat."},
    ]
    (photos / "llava.json").write_text(json.dumps(content))
    (photos / "lines.jsonl").write_text("\n".join(map(json.dumps, content)))
    one, two, text, clip, ours, fields = rows = rows_of(photos / "llava.json", tmp_path / "out")
    assert turns(one) == ["<image>\nWhat is it?", "A cat."] and [message["role"] for message in one["messages"]] == ["user", "assistant"]
    assert turns(two)[0] == "Compare <image> and <image>." and two["images"] == ["cat.jpg", "dog.png"]
    assert text.keys() == {"messages"} and turns(text)[0] == "What is it?"
    assert turns(clip)[0] == "<video>\nWhat is it?" and clip["videos"] == ["more"]
    assert turns(ours)[0] == "<image>?" and turns(fields) == ["<image>\nDescribe the picture.", "A cat."]
    assert rows_of(photos / "lines.jsonl", tmp_path / "lines") == rows


def test_a_folder_is_read_by_texts_or_by_its_folders(photos, tmp_path, capsys):
    for path in list(photos.rglob("*.*")):
        path.with_suffix(".txt").write_text(f"It is a {path.stem}.\n")
    rows = rows_of(photos, tmp_path / "texts")
    assert [(row["images"], turns(row)[1]) for row in rows[:2]] == [(["cat.jpg"], "It is a cat."), (["dog.png"], "It is a dog.")]
    for path in [*photos.rglob("*.txt"), photos / "cat.jpg", photos / "dog.png"]:
        path.unlink()
    (photos / "more" / "raw.heic").touch()
    (photos / "more").rename(photos / "small_animals")
    assert main(["data", "import", str(photos), "--output", str(tmp_path / "labels")]) == 0
    out = capsys.readouterr().out
    assert "whose answer is their folder's name; not read: 1 x .heic; 2 rows, 0 of them bad" in out
    assert f"settings: data.mixture={tmp_path / 'labels' / 'mixture.yaml'} data.media_root={photos}" in out
    row = json.loads((tmp_path / "labels" / "data.jsonl").read_text().splitlines()[0])
    assert turns(row) == ["<image>\nWhat is it?", "small animals"]


def test_a_folder_of_many_files_is_read_in_one_pass(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    folder.mkdir()
    for number in range(60):
        for suffix in ("jpg", "txt", "heic"):
            (folder / f"{number}.{suffix}").touch()
    compared = []
    equal = PurePath.__eq__
    monkeypatch.setattr(PurePath, "__eq__", lambda one, other: bool(compared.append(one)) or equal(one, other))
    assert open_source(folder, Columns(), Questions(())).what.endswith("not read: 60 x .heic")
    assert len(compared) <= 3 * 180  # a few per file (Python 3.12 compares more often than 3.11), not files times files


def test_the_printed_settings_can_be_pasted_into_a_shell(photos, tmp_path, capsys):
    (photos / "captions.csv").write_text("image,caption\ncat.jpg,A cat.\n")
    moved = photos.rename(tmp_path / "my photos")
    assert main(["data", "import", str(moved), "--output", str(tmp_path / "the data")]) == 0
    settings, following = capsys.readouterr().out.splitlines()[-2:]
    pasted = [f"data.mixture={tmp_path}/the data/mixture.yaml", f"data.media_root={moved}"]
    assert shlex.split(settings.removeprefix("settings: ")) == pasted
    assert shlex.split(following.removeprefix("next: ")) == ["vita", "data", "check", "RECIPE.yaml", *pasted]


def test_what_file_managers_leave_is_not_imported(tmp_path):
    folder = tmp_path / "labelled"
    for name in ("cats", "__MACOSX/cats", "cats/@eaDir"):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / name / "a.JPG", format="JPEG")
    (folder / "cats" / "._a.JPG").write_bytes(b"no picture")
    (folder / "._captions.csv").write_bytes(b"no table")
    assert [row["images"] for row in rows_of(folder, tmp_path / "out")] == [["cats/a.JPG"]]


def test_bad_rows_stop_the_import_unless_they_are_to_be_skipped(photos, tmp_path, capsys):
    lines = ["image,caption", "cat.jpg,A cat.", *(f"gone{number}.jpg,Gone." for number in range(9)), "dog.png", "dog.png,", ",A dog."]
    table, out = photos / "t.csv", tmp_path / "out"
    table.write_text("\n".join([*lines, "../secret.jpg,Mine.", "dog.png,A <image> tag."]))
    (tmp_path / "secret.jpg").touch()
    assert main(["data", "import", str(table), "--output", str(out)]) == 2
    found = capsys.readouterr()
    assert "15 rows, 14 of them bad" in found.out and not out.exists()
    bad, *rest, end = found.err.splitlines()
    assert f"{table}:3: image 'gone0.jpg': no such file below {photos}" in bad
    assert bad.endswith(f"and 8 more like it, the last at {table}:11")
    wanted = ("found 1 fields, the header has 2", "the field caption is empty", "no path of a picture", "outside", "found 2 <image> tags")
    assert all(message in line for message, line in zip(wanted, rest))
    assert len(rest) == 5 and "correct them, or leave them out with --skip-bad" in end
    assert main(["data", "import", str(table), "--output", str(out), "--skip-bad"]) == 0
    assert len((out / "data.jsonl").read_text().splitlines()) == 1
    with pytest.raises(ValueError, match="holds data.jsonl and mixture.yaml already"):
        import_data(table, out, skip_bad=True)


def test_a_mixture_names_its_source_and_a_file_that_is_found_from_anywhere(photos, tmp_path, monkeypatch):
    (photos / "my pets: 2.csv").write_text("image,caption\ncat.jpg,A cat.\n")
    monkeypatch.chdir(photos)
    import_data("my pets: 2.csv", "../out")
    content = yaml.safe_load((tmp_path / "out" / "mixture.yaml").read_text())
    assert content == {"dataset": {"my pets: 2": {"ratio": 1, "data_paths": [str(tmp_path / "out" / "data.jsonl")]}}}


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("t.xlsx", b"PK", "files with the suffix '.xlsx' are not read; expected .csv, .tsv, .jsonl, .json, .ndjson .*folder of pictures"),
        ("t.parquet", b"PAR1", "files need no import; name the file under data_paths of a mixture"),
        ("t.csv", b"", "is empty; expected a header line"),
        ("t.csv", b"image,caption\n", "holds no rows"),
        ("t.csv", b"image,caption\ncat.jpg,caf\xe9\n", "is not UTF-8 .*save it as CSV in UTF-8"),
        ("t.csv", b'image,caption\ncat.jpg,"open\n', "is not CSV .*check the quotes"),
        ("t.csv", b"image,words\n", "found the columns image, words; expected one with the answer"),
        ("t.csv", b"id,caption\n", "found the columns id, caption; expected one with the path of the picture"),
        ("t.json", b"[{", "found no JSON"),
    ],
)
def test_what_cannot_be_read_is_refused(photos, tmp_path, name, content, message):
    (photos / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        import_data(photos / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_do_not_say_what_they_are_get_advice(photos, tmp_path):
    with pytest.raises(ValueError, match=r"pictures without captions; expected a table .*cat.txt for cat.jpg.*one folder of"):
        import_data(photos, tmp_path / "out")
    (photos / "a.csv").touch()
    (photos / "b.json").touch()
    with pytest.raises(ValueError, match="holds a.csv, b.json; name the one to import"):
        import_data(photos, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no picture or video and no table; expected .jpg"):
        import_data(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        import_data(tmp_path / "nowhere", tmp_path / "out")
