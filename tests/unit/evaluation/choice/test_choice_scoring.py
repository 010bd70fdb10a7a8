"""Letters and open answers in generated texts, subtitles, and accuracies by group and circle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mindspeed_vita.evaluation.choice.extraction import is_right, letter_of
from mindspeed_vita.evaluation.choice.scores import Score, scores, strict, summary, table
from mindspeed_vita.evaluation.choice.subtitles import Line, read_subtitles, shown_at

OPTIONS = ("a red cat", "a cat", "two dogs", "nothing")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("(C)", "C"), ("D.", "D"), ("A: a red cat", "A"), (" b ", None), ("The answer is C.", "C"), ("Answer: (D)", "D"),
        ("The correct option is B because it is small", "B"), ("I think it must be (B)", "B"), ("It is either A or B", None),
        ("a cat", "B"), ("A red cat.", "A"), ("It shows a red cat", "A"), ("There are two dogs here", "C"), ("Two dogs and nothing", None),
        ("", None), ("E", None), ("A dog is here", None), ("Banana", None), ("The answer is a horse", None), ("B) a cat", "B"),
    ],
)  # fmt: skip
def test_the_letter_that_a_text_chooses(text: str, letter: str | None) -> None:
    assert letter_of(text, OPTIONS, "ABCD") == letter


@pytest.mark.parametrize(
    ("text", "answers", "right"),
    [
        ("Yes", ["yes"], True), ("Yes, it is.", ["Yes"], True), ("No", ["Yes"], False), ("the cat!", ["A cat"], True),
        ("concatenate", ["cat"], False), ("It is 3.43", ["24/7", "3.429"], True), ("x = 2, so 1,200", ["1200"], True),
        ("2 of 3", ["2"], False), ("", ["x"], False), ("anything", [""], False), ("24/7", ["24/7"], True),
    ],
)  # fmt: skip
def test_open_answers(text: str, answers: list[str], right: bool) -> None:
    assert is_right(text, answers) is right


def test_accuracies_by_group_and_of_circles() -> None:
    def record(likelihood: bool, generation: bool, duration: str, circle: str = "") -> dict:
        right = {"likelihood": likelihood, "generation": generation}
        return {"groups": {"duration": duration}, "right": right, "generation": "A" if generation else None, "circle": circle}

    records = [
        record(True, True, "short", "1"), record(True, False, "short", "1"), record(False, True, "long", "2"),
        {"error": "line 4: column x is empty"}, {"groups": {"duration": "long"}, "right": {}, "expected": []},
        {"groups": {"duration": "long"}, "right": {"generation": True}, "generation": "x"},
    ]  # fmt: skip
    assert scores(records, "generation") == {
        "all": {"all": Score(3, 4)}, "duration": {"short": Score(1, 2), "long": Score(2, 2)},
        "circular": {"all rows of a question right": Score(1, 2)},
    }  # fmt: skip
    found = summary(records)
    assert (found["rows"], found["errors"], found["without_answer"], found["no_letter_found"]) == (6, 1, 1, 1)
    assert found["accuracy"]["likelihood"]["all"]["all"] == {"right": 2, "total": 3, "accuracy": 2 / 3}
    assert table({"64 fr.": found}) == [
        ["", "", "rows", "64 fr. likelihood", "64 fr. generation"],
        ["", "all", "4", "66.7", "75.0"],
        ["duration", "short", "2", "100.0", "50.0"],
        ["duration", "long", "2", "0.0", "100.0"],
        ["circular", "all rows of a question right", "2", "50.0", "50.0"],
        ["", "rows that failed, not in the accuracies", "", "1 of 6", "1 of 6"],
    ]


def test_a_gate_counts_rows_that_failed_as_wrong() -> None:
    """Otherwise one right answer of a hundred rows, 99 of which failed, would pass."""
    right = {"groups": {}, "right": {"likelihood": True, "generation": True}, "likelihood": "A", "generation": "A"}
    unread = {"groups": {}, "right": {"generation": True}, "generation": "A"}
    found = summary([right, *[{"error": "gone"}] * 9])
    assert strict(found, "generation") == (Score(1, 10), "9 rows with an error")
    found = summary([right, unread, {"error": "gone"}])
    assert strict(found, "generation") == (Score(2, 3), "1 row with an error") and found["no_likelihood"] == 1
    assert strict(found, "likelihood") == (Score(1, 3), "1 row with an error and 1 row whose letters have no likelihood")
    assert strict(summary([right]), "generation") == (Score(1, 1), "") and strict(summary([]), "likelihood") == (Score(0, 0), "")


def test_subtitles_of_both_kinds(tmp_path: Path) -> None:
    first = '1\r\n00:00:01,000 --> 00:00:03,500\r\n<font color="white" size=".72c">Hello\r\nthere</font>\r\n\r\n'
    srt = first + "2\r\n01:00:00,000 --> 01:00:01,000\r\n\r\n"
    (tmp_path / "a.srt").write_bytes(srt.encode())
    assert read_subtitles(tmp_path / "a.srt") == [Line(1.0, 3.5, "Hello there")]
    rows = [{"start": "00:00:01.5", "end": "00:00:02.0", "line": "one"}, {"timestamp": [4.0, None], "text": "two"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    lines = read_subtitles(tmp_path / "a.json")
    assert [line.text for line in lines] == ["one", "two"]
    assert shown_at(lines, [0.0, 1.6, 1.7]) == ["one"] and shown_at(lines, [0.0, 1.0], start=4.0) == ["two"]
    (tmp_path / "b.json").write_text("{}x")
    with pytest.raises(ValueError, match="are none of LongVideoBench's"):
        read_subtitles(tmp_path / "b.json")
