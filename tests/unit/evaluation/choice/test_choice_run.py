"""`vita eval choice` from end to end on a tiny export: transformers' answers and likelihoods, stops, bad rows."""

from __future__ import annotations

import base64
import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mindspeed_vita.cli import evaluate_choice
from mindspeed_vita.cli.main import main
from mindspeed_vita.evaluation import answer_tokens
from mindspeed_vita.evaluation.choice.prompt import request_of
from mindspeed_vita.evaluation.choice.run import ChoiceFile, ChoiceSettings
from mindspeed_vita.inference.hf_generate import HFGenerator, load_hf
from mindspeed_vita.inference.request import Request

from .conftest import film, picture


@pytest.fixture(scope="module")
def by_transformers(exported: Path) -> HFGenerator:
    return load_hf(exported)


def made_up_rows(number: int) -> list[dict[str, Any]]:
    """Rows as MMBench's TSV has them; each picture is shared by a few rows, as there."""
    draw, words = np.random.default_rng(5), ["cat", "dog", "table", "photo", "people", "two", "one"]
    rows = []
    for index in range(number):
        options = draw.choice(words, draw.integers(2, 5), replace=False)
        image = base64.b64encode(picture(index, *draw.integers(20, 60, 2))).decode() if index % 10 == 0 else str(index - index % 10)
        rows.append({
            "index": index, "question": f"What is in picture {index}?", "hint": "Look." if index % 3 else "", "image": image,
            **{letter: options[place] if place < len(options) else "" for place, letter in enumerate("ABCD")},
            "answer": "ABCD"[draw.integers(len(options))], "category": ["one", "two"][index % 2],
        })  # fmt: skip
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def records(output: Path, frames: int = 64) -> list[dict[str, Any]]:
    lines = (output / f"frames_{frames}.jsonl").read_text().splitlines()
    return sorted(map(json.loads, lines), key=lambda record: record["line"])


def logprobs(generator: HFGenerator, request: Request, letters: str) -> list[float]:
    """Log-probabilities of letters at the place of the answer's first token, by transformers' forward pass."""
    processor = generator.processor
    text = processor.apply_chat_template([{"role": "user", "content": request.messages[0].content}], add_generation_prompt=True)
    inputs = processor(text=text, images=list(request.images), videos=list(request.videos), return_tensors="pt")
    with torch.no_grad():
        scores = generator.model(**inputs).logits[0, -1].float().log_softmax(-1)
    return [scores[processor.tokenizer.convert_tokens_to_ids(letter)].item() for letter in letters]


def test_two_hundred_rows_as_transformers_answers_them(
    exported: Path, by_transformers: HFGenerator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = write(tmp_path / "made_up.tsv", made_up_rows(200)), tmp_path / "out"
    command = ["eval", "choice", str(exported), str(path), "--output", str(output), "--max-new-tokens", "6", "--cache-memory", "8MB"]
    assert main(command) == 0
    found, file = records(output), ChoiceFile(ChoiceSettings(file=path, output=output))
    assert len(found) == 200
    for number, record in enumerate(found, 1):
        request = request_of(file.question(number))
        assert record["answer"] == by_transformers.generate(request, max_new_tokens=6).text
        if number % 20 == 1:
            expected = logprobs(by_transformers, request, "".join(record["logprobs"]))
            assert list(record["logprobs"].values()) == pytest.approx(expected, abs=1e-5)  # at most 9.6e-7 measured
        assert record["likelihood"] == max(record["logprobs"], key=record["logprobs"].get)
    assert len({record["answer"] for record in found}) > 50, "weights that always say the same would prove nothing"
    results = json.loads((output / "results.json").read_text())["frames"]["64"]
    right = sum(record["right"]["likelihood"] for record in found)
    assert results["accuracy"]["likelihood"]["all"]["all"] == {"right": right, "total": 200, "accuracy": right / 200}
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["all", "200", f"{right / 2:.1f}"] and lines[2].split()[:3] == ["category", "one", "100"]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Three questions about a film of 12 frames, as LongVideoBench has them; the second row is malformed, the fourth film is gone."""
    film(tmp_path / "media" / "film", 12)
    (tmp_path / "subtitles").mkdir()
    lines = [{"start": f"00:00:{second:02d}.0", "end": f"00:00:{second:02d}.9", "line": f"word{second}"} for second in range(12)]
    (tmp_path / "subtitles" / "film.json").write_text(json.dumps(lines))
    common = {
        "question": "What is it?", "candidates": ["a cat", "a dog"], "correct_choice": 1, "video_path": "film",
        "subtitle_path": "film.json", "duration_group": 15, "question_category": "T2E", "starting_timestamp_for_subtitles": 0,
    }  # fmt: skip
    rows = [{**common, "id": f"q{number}"} for number in range(5)]
    rows[1]["candidates"], rows[3]["video_path"], rows[4]["duration_group"] = "none", "gone", 60
    (tmp_path / "lvb.json").write_text(json.dumps(rows))
    return tmp_path


def run_videos(exported: Path, folder: Path, output: str, *more: str) -> int:
    command = ["eval", "choice", str(exported), str(folder / "lvb.json"), "--media", str(folder / "media")]
    return main([*command, "--output", str(folder / output), "--max-new-tokens", "3", "--cache-memory", "8MB", *more])


def test_frames_subtitles_and_bad_rows(
    exported: Path, by_transformers: HFGenerator, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_videos(exported, videos, "out", "--frames", "8,3", "--subtitles", str(videos / "subtitles")) == 0
    for frames, times in ((3, (0, 4, 8)), (8, None)):
        found = records(videos / "out", frames)
        assert [record.get("frames") for record in found] == [[frames], None, [frames], None, [frames]]
        assert found[1]["error"] == "lvb.json row 2: column candidates holds 'none'; expected a list"
        assert "lvb.json row 4: column video_path:" in found[3]["error"] and "gone" in found[3]["error"]
        if times is not None:
            settings = ChoiceSettings(file=videos / "lvb.json", output=videos, media=videos / "media", subtitles=videos / "subtitles")
            request = request_of(ChoiceFile(settings).question(1), subtitles=[f"word{time}" for time in times])
            by_transformers.processor.max_frames = frames
            assert found[0]["answer"] == by_transformers.generate(request, max_new_tokens=3).text
            by_transformers.processor.max_frames = 64
    said = capsys.readouterr()
    assert said.out.splitlines()[0].split() == ["rows", "3", "fr.", "likelihood", "3", "fr.", "generation", "8", "fr.", "likelihood", "8",
                                                "fr.", "generation"]  # fmt: skip
    assert [line.split()[:3] for line in said.out.splitlines()[2:4]] == [["duration", "15", "2"], ["duration", "60", "1"]]
    assert "2 of them an error" in said.err and "lvb.json:2 lvb.json row 2: column candidates" in said.err


def test_a_stopped_run_goes_on_and_another_one_is_refused(
    exported: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_videos(exported, videos, "out", "--frames", "3") == 0
    output = videos / "out" / "frames_3.jsonl"
    whole = output.read_text().splitlines(keepends=True)
    output.write_text("".join(whole[:3]) + whole[3][:17])
    assert run_videos(exported, videos, "out", "--frames", "3") == 0
    assert output.read_text().startswith("".join(whole[:3])) and sorted(output.read_text().splitlines()) == sorted(map(str.strip, whole))
    capsys.readouterr()
    for more in (["--instruction", "Say it."], ["--subtitles", str(videos / "subtitles")]):
        assert run_videos(exported, videos, "out", "--frames", "3", *more) == 2
        assert "with other settings; choose another --output" in capsys.readouterr().err
    rows = json.loads((videos / "lvb.json").read_text())
    (videos / "lvb.json").write_text(json.dumps([{**rows[0], "question": "Who?"}, *rows[1:]]))
    assert run_videos(exported, videos, "out", "--frames", "3") == 2


def test_a_part_of_a_video_is_that_part(exported: Path, videos: Path) -> None:
    """Seconds 4 to 9 of the film are answered like a film of these frames only."""
    film(videos / "media" / "part", 6, seed=4)
    row = {"question": "What?", "candidates": ["cat", "dog"], "answer": "dog"}
    rows = [{**row, "video": "film", "start": 4, "end": 9}, {**row, "video": "part"}, {**row, "video": "film", "start": 40, "end": 41}]
    (videos / "lvb.json").write_text(json.dumps(rows))
    assert run_videos(exported, videos, "parts", "--frames", "64") == 0
    part, alone, late = records(videos / "parts")
    assert part["logprobs"] == alone["logprobs"] and part["answer"] == alone["answer"] and part["frames"] == [6]
    assert "ends at second 12, before its part from second 40" in late["error"]


def test_a_gate_and_bad_options(exported: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_videos(exported, videos, "out", "--frames", "3", "--pass", "0", "--by", "likelihood") == 0
    accuracy = json.loads((videos / "out" / "results.json").read_text())["frames"]["3"]["accuracy"]["generation"]["all"]["all"]["accuracy"]
    assert run_videos(exported, videos, "out", "--frames", "3", "--pass", "1") == (0 if accuracy == 1 else 1)
    capsys.readouterr()
    for more, message in (
        (["--frames", "3,x"], "--frames is '3,x'; expected numbers of at least 1"), (["--pass", "60"], "--pass is 60.0; expected a share"),
        (["--limit", "0"], "--limit is 0; expected at least 1"), (["--subtitles", "gone"], "--subtitles gone: no such folder"),
    ):  # fmt: skip
        assert run_videos(exported, videos, "other", *more) == 2
        assert message in capsys.readouterr().err


def test_a_gate_names_the_format_and_the_step_that_was_asked(
    exported: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many benchmarks name their files alike, and the run that is asked may write a newer step meanwhile."""
    run = videos / "run"
    assert main(["convert", "--from", str(exported), "--to", "native", "--output", str(run)]) == 0
    opened = evaluate_choice.open_session

    def meanwhile(arguments: Any) -> Any:
        shutil.copytree(run / "step_0000000", run / "step_0000007")
        return opened(arguments)

    monkeypatch.setattr(evaluate_choice, "open_session", meanwhile)
    monkeypatch.chdir(videos)
    options = ["--media", str(videos / "media"), "--frames", "3", "--max-new-tokens", "2", "--limit", "2", "--cache-memory", "8MB"]
    assert main(["eval", "choice", str(run), str(videos / "lvb.json"), *options, "--pass", "0.6", "--by", "likelihood"]) == 1
    (gate,) = (run / "gates").iterdir()
    assert gate.name == "choice_longvideobench_lvb.step_0000000.json"
    content = json.loads(gate.read_text())
    assert content["measured"] in (0, 0.5) and content["detail"].endswith("with 3 frames, 1 row with an error counted as wrong")
    found = json.loads((videos / "lvb_longvideobench_results" / "results.json").read_text())
    assert found["checkpoint"] == str(run / "step_0000000")


def test_frames_of_mindspeed_llm_come_from_its_recipe(exported: Path, videos: Path) -> None:
    run, saved = videos / "run", videos / "saved"
    assert main(["convert", "--from", str(exported), "--to", "native", "--output", str(run)]) == 0
    assert main(["convert", "--from", str(run), "--to", "mindspeed-llm", "--output", str(saved)]) == 0
    assert run_videos(saved, videos, "out", "--limit", "1", "--max-frames", "5") == 0
    assert run_videos(saved, videos, "other", "--limit", "1") == 0
    assert (videos / "out" / "frames_5.jsonl").is_file() and (videos / "other" / "frames_64.jsonl").is_file()


def test_letters_without_a_token_leave_the_generation(
    exported: Path, videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the letters of a question matter, and a question whose letters have none is still answered."""
    rows = json.loads((videos / "lvb.json").read_text())
    rows = [rows[0], {**rows[0], "id": "three", "candidates": ["a", "b", "c"]}]
    (videos / "lvb.json").write_text(json.dumps(rows))
    tokens = answer_tokens.answer_tokens
    monkeypatch.setattr(answer_tokens, "answer_tokens", lambda *given: (1, 2) if given[2] > "B" else tokens(*given))
    assert run_videos(exported, videos, "out", "--frames", "3", "--pass", "0.6", "--by", "likelihood") == 1
    two, three = records(videos / "out", 3)
    assert set(two["logprobs"]) == {"A", "B"} and set(two["right"]) == {"likelihood", "generation"}
    assert "logprobs" not in three and "likelihood" not in three and set(three["right"]) == {"generation"}
    assert "1 rows have a letter that the tokenizer has no token for, so they are scored by generation only" in capsys.readouterr().err
