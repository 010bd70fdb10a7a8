"""Requests of a file: records as they come, on from where a stop left off, and a record for what cannot be answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mindspeed_vita.inference.batch_file import BatchFile, answer_file, read_request
from mindspeed_vita.inference.request import Answer, Request
from mindspeed_vita.inference.request_loop import Update
from mindspeed_vita.inference.sampling import SamplingParams

PARAMS = SamplingParams(max_tokens=5)


class Loop:
    """Answers each request two steps after it came, with its own text."""

    def __init__(self) -> None:
        self.waiting: dict[int, tuple[int, str]] = {}
        self.steps = self.number = 0
        self.most = 0

    def add(self, request: Request, params: SamplingParams) -> int:
        text = request.messages[-1].content
        if text == "too long":
            raise ValueError("a prompt of 9 tokens does not fit")
        self.number += 1
        self.waiting[self.number] = (self.steps + 2, text)
        self.most = max(self.most, len(self.waiting))
        return self.number

    def step(self) -> list[Update]:
        self.steps += 1
        found = []
        for number, (when, text) in list(self.waiting.items()):
            if when <= self.steps:
                del self.waiting[number]
                failed = {"reason": "error", "message": "it broke"} if text == "breaks" else {}
                found.append(Update(number, text, Answer(text=text.upper(), token_ids=(1, 2), prompt_tokens=3, **failed)))
        return found


def run(path: Path, output: Path, loop: Loop) -> tuple[list[str], list[int]]:
    said: list[int] = []
    batch = BatchFile(path, output)
    return list(answer_file(loop, batch, PARAMS, at_once=2, said=said.append)), said  # type: ignore[arg-type]


def records(path: Path) -> dict[int, dict[str, Any]]:
    return {record["line"]: record for record in map(json.loads, path.read_text().splitlines())}


LINES = [
    '{"prompt": "one", "id": "a"}',
    "{broken",
    "",
    '{"messages": [{"role": "user", "content": "two"}]}',
    '{"prompt": "too long", "id": 7}',
    '{"prompt": "breaks"}',
    '{"prompt": "gone", "images": ["gone.png"]}',
    '{"prompt": "three"}',
]


def test_every_line_gets_a_record_and_a_bad_one_an_error(tmp_path: Path) -> None:
    path, output, loop = tmp_path / "in.jsonl", tmp_path / "out.jsonl", Loop()
    path.write_text("\n".join(LINES))
    problems, said = run(path, output, loop)
    found = records(output)
    assert sorted(found) == [1, 2, 4, 5, 6, 7, 8] and said[-1] == 7 and loop.most == 2
    assert found[1] | {"sha256": ""} == {
        "line": 1, "sha256": "", "id": "a", "answer": "ONE", "reason": "stop", "prompt_tokens": 3, "tokens": 2,
    }  # fmt: skip
    assert found[4]["answer"] == "TWO" and found[8]["answer"] == "THREE"
    assert "is not JSON" in found[2]["error"] and found[5]["error"] == "a prompt of 9 tokens does not fit" and found[5]["id"] == 7
    assert found[6]["error"] == "it broke" and found[7]["error"].endswith("gone.png: no such file")
    assert [problem.split(" ")[0].rsplit(":", 1)[1] for problem in problems] == ["2", "5", "7", "6"]


def test_it_goes_on_where_a_stop_left_off(tmp_path: Path) -> None:
    path, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text("\n".join(LINES))
    run(path, output, Loop())
    whole = output.read_text().splitlines(keepends=True)
    output.write_text("".join(whole[:2]) + whole[2][:20])  # the third record was cut off
    again = Loop()
    run(path, output, again)
    assert sorted(records(output)) == [1, 2, 4, 5, 6, 7, 8] and output.read_text().startswith("".join(whole[:2]))
    assert BatchFile(path, output).left == []


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_a_line_feed_ends_a_line(tmp_path: Path, end: str) -> None:
    """JSON texts may hold the other separators as they are; records of an earlier version do so too."""
    path, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts = ["a\u2028b", "c\x85d", "e\u2029f"]
    path.write_bytes("".join(f'{{"prompt": "{prompt}", "id": "{prompt}"}}{end}' for prompt in prompts).encode())
    run(path, output, Loop())
    found = [json.loads(line) for line in output.read_bytes().split(b"\n")[:-1]]
    assert [(record["line"], record["id"], record["answer"]) for record in found] == [
        (number, prompt, prompt.upper()) for number, prompt in enumerate(prompts, 1)
    ]
    output.write_bytes("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in found[:2]).encode())
    assert BatchFile(path, output).left == [3]


def test_a_line_that_cannot_be_read_costs_only_itself(tmp_path: Path) -> None:
    path, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [
        (b'{"prompt": "one", "stop": 5, "id": 4}', "stop=5; expected several texts"),
        (b"[" * 100_000, "is JSON that is nested too deeply"),
        (b'{"prompt": "caf\xe9"}', "is not UTF-8 (byte 0xe9 at offset 15)"),
        (b'{"prompt": "x", "seed": ' + b"1" * 5000 + b"}", "is not JSON (Exceeds the limit"),
        (b'{"prompt": "x", "temperature": 1' + b"0" * 400 + b"}", "expected a number of at least 0"),
        (b'{"id": "\\ud800"}', "needs either prompt or messages"),
    ]
    path.write_bytes(b"\n".join([*(line for line, _ in lines), b'{"prompt": "last", "id": "\\udfff"}\n']))
    problems, _ = run(path, output, Loop())
    found = records(output)
    assert len(found) == 7 and len(problems) == 6
    for number, (_, message) in enumerate(lines, 1):
        assert message in found[number]["error"], number
    assert found[1]["id"] == 4 and found[6]["id"] == "\ud800" and (found[7]["answer"], found[7]["id"]) == ("LAST", "\udfff")
    again = BatchFile(path, output)
    assert again.left == [] and again.failed == set(range(1, 7))
    assert "7 of 7 lines of" in str(again) and str(again).endswith("6 of them an error; to ask those again, take their records out")


def test_records_of_another_file_are_refused(tmp_path: Path) -> None:
    path, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text('{"prompt": "one"}\n')
    run(path, output, Loop())
    path.write_text('{"prompt": "another"}\n')
    with pytest.raises(ValueError, match="answers another line 1 than .* has, or was made"):
        BatchFile(path, output)
    path.write_text('{"prompt": "one"}\n')
    with pytest.raises(ValueError, match="or was made from another checkpoint or with other settings; choose another --output"):
        BatchFile(path, output, settings="another checkpoint")
    with pytest.raises(ValueError, match="nowhere is no folder; make it first"):
        BatchFile(path, tmp_path / "nowhere" / "out.jsonl")
    for content in (b"notes\n", b"\xff\n", b'{"line": [1], "sha256": ""}\n'):
        output.write_bytes(content)
        with pytest.raises(ValueError, match="line 1 is no record of a batch; choose another --output"):
            BatchFile(path, output)
    with pytest.raises(ValueError, match="batch file .*gone: no such file"):
        BatchFile(tmp_path / "gone", output)


def test_a_line_sets_its_own_sampling_and_paths_are_the_files_own(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    request, params = read_request(b'{"prompt": "x", "images": ["a.png"], "max_tokens": 9, "stop": ["."]}', tmp_path, PARAMS)
    assert request.images == (str(tmp_path / "a.png"),) and params == SamplingParams(max_tokens=9, stop=(".",))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "is a JSON list; expected an object"),
        ('{"prompt": "x", "colour": 1}', "has the unknown key colour; expected some of id, prompt"),
        ('{"prompt": "x", "temperatur": 1}', r"unknown key temperatur; did you mean temperature\? expected some of id"),
        ('{"prompt": "x", "imges": [], "max_token": 1}', r"keys imges, max_token; did you mean images and max_tokens\? expected"),
        ('{"images": []}', "needs either prompt or messages"),
        ('{"prompt": 3}', "has a prompt of type int; expected a text"),
        ('{"prompt": "x", "images": "a.png"}', "has images that are no list of paths"),
        ('{"messages": []}', "has messages that are no list of turns"),
        ('{"messages": [{"role": "user"}]}', "has a turn that is not"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "has a turn of role 'robot'; expected one of system, user, assistant"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "ends with a turn of the assistant; expected the user's"),
        ('{"prompt": "x", "id": [1]}', "has an id of type list; expected a text or a number"),
        ('{"prompt": "x", "stop": 5}', "stop=5; expected several texts"),
        ('{"prompt": "x", "temperature": "hot"}', "temperature='hot'; expected a number"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_request(line.encode(), tmp_path, PARAMS)


def test_tokens_that_are_forced_or_watched_are_no_setting_of_a_line(tmp_path: Path) -> None:
    for name in ("forced", "watched"):
        with pytest.raises(ValueError, match=f"unknown key {name}; expected some of id"):
            read_request(json.dumps({"prompt": "x", name: [1]}).encode(), tmp_path, PARAMS)
