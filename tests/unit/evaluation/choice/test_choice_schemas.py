"""Made-up rows of each published schema become questions; what is wrong with a row is said with its column."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from mindspeed_vita.evaluation.choice.question import Question
from mindspeed_vita.evaluation.choice.run import ChoiceFile, ChoiceSettings
from mindspeed_vita.evaluation.choice.table import read_rows

from .conftest import picture

PICTURE = base64.b64encode(picture(0)).decode()


def write_tsv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def questions(path: Path, **options: Any) -> tuple[str, list[Question]]:
    file = ChoiceFile(ChoiceSettings(file=path, output=path.parent / "out", **options))
    return file.schema.name, [file.question(number) for number in file.rows]


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


VIDEO_MME = {
    "video_id": "001", "duration": "short", "domain": "Knowledge", "sub_category": "Humanity & History", "url": "somewhere",
    "videoID": "fFjv93ACGo8", "question_id": "001-1", "task_type": "Counting Problem", "question": "How many apples?",
    "options": ["A. Two.", "B. Three.", "C. Four.", "D. Five."], "answer": "C",
}  # fmt: skip


def test_video_mme_as_parquet_with_subtitles(tmp_path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist([VIDEO_MME]), tmp_path / "test.parquet")
    media = touched(tmp_path, "data/fFjv93ACGo8.mp4", "subtitle/fFjv93ACGo8.srt")
    schema, (found,) = questions(tmp_path / "test.parquet", media=media, subtitles=media / "subtitle")
    assert schema == "video-mme" and found.options == ("Two.", "Three.", "Four.", "Five.") and found.answer == ("C",)
    assert found.videos == (str(media / "data/fFjv93ACGo8.mp4"),) and found.subtitles.endswith("subtitle/fFjv93ACGo8.srt")
    assert found.groups == {
        "duration": "short", "domain": "Knowledge", "sub-category": "Humanity & History", "task": "Counting Problem",
    }  # fmt: skip
    assert questions(tmp_path / "test.parquet", media=media)[1][0].subtitles == ""


def test_video_mme_as_vlmevalkit_writes_it(tmp_path: Path) -> None:
    row = {
        "index": 7, "video": "xyz", "video_path": "./video/xyz.mp4", "duration": "long", "domain": "Sports Competition",
        "candidates": "['A. It\\'s red.', 'B. Blue.']", "sub_category": "Football", "task_type": "OCR Problems",
        "subtitle_path": "./subtitle/xyz.srt", "question": "Which\ncolour?", "answer": "B",
    }  # fmt: skip
    path = write_tsv(touched(tmp_path, "video/xyz.mp4") / "Video-MME.tsv", [row])
    schema, (found,) = questions(path)
    assert schema == "video-mme" and found.options == ("It's red.", "Blue.") and found.id == "7" and found.text == "Which\ncolour?"


def test_mvbench_json_of_a_task_with_parts_of_videos(tmp_path: Path) -> None:
    rows = [
        {"video": "a.mp4", "question": "First?", "candidates": ["Ate.", "Ran."], "answer": "Ran.", "start": 1.5, "end": 4.0},
        {"video": "a.mp4", "question": "Then?", "candidates": ["Sat.", "Sang.", "Left."], "answer": "Left."},
    ]
    folder = touched(tmp_path, "video/star/Charades_v1_480/a.mp4") / "json"
    folder.mkdir()
    (folder / "action_sequence.json").write_text(json.dumps(rows))
    frames = [{"video": "b", "question": "Who?", "candidates": ["He", "She"], "answer": "She", "start": 2, "end": 3}]
    (folder / "episodic_reasoning.json").write_text(json.dumps(frames))
    (tmp_path / "video/tvqa/frames_fps3_hq/b").mkdir(parents=True)
    schema, found = questions(folder, media=tmp_path)
    video = tmp_path / "video/star/Charades_v1_480/a.mp4"
    assert schema == "mvbench" and [one.answer for one in found] == [("B",), ("C",), ("B",)]
    assert found[0].videos == (f"{video}#t=1.5,4.0",) and found[1].videos == (str(video),)
    assert found[2].videos[0].endswith("tvqa/frames_fps3_hq/b#t=2.0,3.0&fps=3.0")
    assert [one.groups["task"] for one in found] == ["action_sequence", "action_sequence", "episodic_reasoning"]


def test_mvbench_as_vlmevalkit_writes_it(tmp_path: Path) -> None:
    row = {
        "index": 0, "task_type": "Action Antonym", "prefix": "video/ssv2_video/", "data_type": "video", "bound": "False", "start": "",
        "end": "", "video": "1.webm", "question": "What?", "answer": "Up", "candidates": "['Up', 'Down']",
    }  # fmt: skip
    schema, (found,) = questions(write_tsv(touched(tmp_path, "video/ssv2_video/1.webm") / "MVBench.tsv", [row]))
    assert schema == "mvbench" and found.answer == ("A",) and found.groups == {"task": "Action Antonym"} and "#t" not in found.videos[0]


LONG_VIDEO = {
    "video_id": "86CxyhFV9MI", "question": "What is on the desk?", "question_wo_referring_query": "What?", "correct_choice": 1,
    "position": [854], "topic_category": "NP-News-Programs", "question_category": "TOS", "level": "L2-Relation", "id": "86CxyhFV9MI_0",
    "video_path": "86CxyhFV9MI.mp4", "subtitle_path": "86CxyhFV9MI_en.json", "duration_group": 600,
    "starting_timestamp_for_subtitles": 12.5, "duration": 190.16, "view_count": 259852,
}  # fmt: skip


def test_longvideobench_as_json_and_as_parquet(tmp_path: Path) -> None:
    media = touched(tmp_path, "videos/86CxyhFV9MI.mp4", "subtitles/86CxyhFV9MI_en.json")
    (tmp_path / "lvb_val.json").write_text(json.dumps([{**LONG_VIDEO, "candidates": ["A cup", "A pen", "A cat"]}]))
    options = {f"option{place}": text for place, text in enumerate(["A cup", "A pen", "A cat", "N/A", "N/A"])}
    parquet.write_table(pa.Table.from_pylist([{**LONG_VIDEO, **options}]), tmp_path / "validation.parquet")
    as_json, as_parquet = (
        questions(tmp_path / name, media=media, subtitles=media / "subtitles") for name in ("lvb_val.json", "validation.parquet")
    )
    assert as_json == as_parquet
    schema, (found,) = as_json
    assert schema == "longvideobench" and found.options == ("A cup", "A pen", "A cat") and found.answer == ("B",)
    assert found.groups["duration"] == "600" and found.subtitles_start == 12.5 and found.subtitles.endswith("_en.json")


def test_the_test_split_of_longvideobench_has_no_answers(tmp_path: Path) -> None:
    media = touched(tmp_path, "videos/86CxyhFV9MI.mp4")
    row = {key: value for key, value in LONG_VIDEO.items() if key != "correct_choice"} | {"candidates": ["a", "b"]}
    (tmp_path / "lvb_test_wo_gt.json").write_text(json.dumps([row]))
    assert questions(tmp_path / "lvb_test_wo_gt.json", media=media)[1][0].answer == ()


def test_mmmu_as_parquet_with_pictures_in_rows(tmp_path: Path) -> None:
    struct = {"bytes": picture(1), "path": "1.png"}
    rows = [
        {"id": "validation_Art_Theory_1", "question": "<image 2> or <image 1>?", "options": "['<image 1>', 'B-dur']", "answer": "B",
         "question_type": "multiple-choice", "subfield": "Theory", "topic_difficulty": "Hard", "image_1": struct,
         "image_2": {"bytes": picture(2), "path": "2.png"}},
        {"id": "validation_Math_3", "question": "How much?", "options": "[]", "answer": "['24/7', '3.429']", "question_type": "open",
         "subfield": "Algebra", "topic_difficulty": "Easy", "image_1": struct, "image_2": None},
    ]  # fmt: skip
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "validation.parquet")
    schema, (choice, is_open) = questions(tmp_path / "validation.parquet")
    assert schema == "mmmu" and choice.text == "<image> or <image>?" and choice.options == ("<image>", "B-dur")
    contents = [Path(path).read_bytes() for path in choice.images]
    assert contents == [picture(2), picture(1), picture(1)], "a picture for each tag, in their order"
    assert choice.groups == {"discipline": "Art and Design", "subject": "Art_Theory", "difficulty": "Hard", "kind": "multiple choice"}
    assert is_open.text == "<image>\nHow much?" and is_open.answer == ("24/7", "3.429") and not is_open.options


def test_mmbench_with_base64_and_options_turned_in_a_circle(tmp_path: Path) -> None:
    row = {
        "index": 241, "question": "Which?", "hint": "Look.", "A": "cat", "B": "dog", "C": "", "D": "", "answer": "A",
        "category": "identity", "image": PICTURE, "source": "made up", "l2-category": "finegrained", "comment": "", "split": "dev",
    }  # fmt: skip
    turned = {**row, "index": 1_000_241, "A": "dog", "B": "cat", "answer": "B", "image": "241"}
    schema, (first, second) = questions(write_tsv(tmp_path / "MMBench_DEV_EN.tsv", [row, turned]))
    assert schema == "base64-tsv" and first.circle == second.circle == "241" and first.hint == "Look."
    assert first.images == second.images and Path(first.images[0]).read_bytes() == picture(0)
    assert first.groups == {"category": "identity", "category 2": "finegrained", "split": "dev"} and first.options == ("cat", "dog")


def test_an_export_with_a_media_folder_and_open_questions(tmp_path: Path) -> None:
    rows = [
        {"index": "1", "question": "Is it red?", "image_path": "a.png", "answer": "Yes", "category": "colour"},
        {"index": "2", "question": "Read it.", "image_path": ["a.png", "b.png"], "answer": "['STOP', 'Stop!']"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    schema, found = questions(tmp_path / "rows.jsonl", media=touched(tmp_path / "media", "a.png", "b.png"))
    assert schema == "base64-tsv" and [one.answer for one in found] == [("Yes",), ("STOP", "Stop!")]
    assert found[1].images == (str(tmp_path / "media/a.png"), str(tmp_path / "media/b.png"))


BAD = [
    ({"question": ""}, "column question is empty"),
    ({"B": ""}, "column B is empty; expected at least two options"),
    ({"A": "", "B": "x", "answer": "A"}, "column A is empty, and column B is not"),
    ({"answer": "E"}, "column answer holds 'E'; expected a letter up to B, or an option's text"),
    ({"image": "77"}, "column image names row 77, which has no picture in base64"),
    ({"image": "!" * 80}, "column image is no base64"),
    ({"image": ""}, "columns image and image_path are empty"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message[:24] for _, message in BAD])
def test_a_malformed_row_names_line_and_column(tmp_path: Path, change: dict[str, str], message: str) -> None:
    good = {"index": 1, "question": "Which?", "A": "cat", "B": "dog", "answer": "A", "image": PICTURE}
    path = write_tsv(tmp_path / "some.tsv", [{**good, "question": "Two\nlines?"}, {**good, **change}])
    file = ChoiceFile(ChoiceSettings(file=path, output=tmp_path / "out"))
    assert file.question(1).answer == ("A",)
    with pytest.raises(ValueError) as error:
        file.question(2)
    assert str(error.value).startswith("some.tsv line 4: ") and message in str(error.value)


def test_lines_that_are_no_rows_cost_only_themselves(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"index": 1}\n\n[1]\n{broken\n')
    assert [(row.place, row.problem.split(" (")[0]) for row in read_rows(tmp_path / "rows.jsonl")] == [
        ("rows.jsonl line 1", ""), ("rows.jsonl line 3", "is a list; expected an object"), ("rows.jsonl line 4", "is not JSON"),
    ]  # fmt: skip
    (tmp_path / "rows.tsv").write_text("a\tb\n1\t2\n3\n4\t5\n")
    assert [row.problem for row in read_rows(tmp_path / "rows.tsv")] == ["", "has 1 cells; the first line names 2 columns", ""]


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    contents = {
        "a.txt": (b"x", "cannot be read; expected one of"), "b.json": (b"{}", "holds a dict; expected a list of rows"),
        "c.parquet": (b"no", "is no parquet file"), "d.tsv": (b"a\tb\n\xff\t1\n", "is not UTF-8"), "e.tsv": (b"a\n", "has no rows"),
        "f.tsv": (b"a\tb\n1\t2\n", "the columns a, b fit no known schema"),
    }  # fmt: skip
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            ChoiceFile(ChoiceSettings(file=tmp_path / name, output=tmp_path / "out"))
    with pytest.raises(ValueError, match="no such file; expected a benchmark's file"):
        read_rows(tmp_path / "gone.tsv")


def test_subtitles_of_a_benchmark_without_any_are_refused(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "x.tsv", [{"index": 1, "question": "?", "A": "a", "B": "b", "answer": "A", "image": PICTURE}])
    with pytest.raises(ValueError, match="has no subtitles; leave it out"):
        ChoiceFile(ChoiceSettings(file=path, output=tmp_path, subtitles=tmp_path))
    with pytest.raises(ValueError, match="--schema mmlu is unknown; expected one of video-mme, longvideobench"):
        ChoiceFile(ChoiceSettings(file=path, output=tmp_path, schema="mmlu"))


def test_an_option_that_is_a_letter_is_meant_where_answers_are_texts(tmp_path: Path) -> None:
    """MVBench names the right option by its text, and a text may be "A"."""
    row = {"video": "a.mp4", "question": "Which letter is shown?", "candidates": ["B", "A", "C"], "answer": "A"}
    (touched(tmp_path, "a.mp4") / "letters.json").write_text(json.dumps([row, {**row, "candidates": ["B", "C"]}]))
    schema, (text, bare) = questions(tmp_path / "letters.json")
    assert schema == "mvbench" and text.answer == ("B",) and bare.answer == ("A",)
