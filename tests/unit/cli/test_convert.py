"""`vita convert` and `vita generate` through the command line: there and back, and one clear line for each mistake."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mindspeed_vita.checkpoint.folder_lock import held
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.cli.main import main
from mindspeed_vita.files.digest import checksum_of
from mindspeed_vita.files.sizes import parse_size
from tests.tiny_checkpoint import make_tokenizer, random_weights, tiny_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    make_tokenizer(folder / "tokenizer")
    native.save_full_weights(folder / "run", random_weights(), tiny_recipe(tokenizer=str(folder / "tokenizer")))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)).save(folder / "wide.png")
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    assert main(["convert", "--from", str(run / "run"), "--to", "hf", "--output", str(run / "hf")]) == 0
    return run / "hf"


def test_native_to_hf_to_native_is_exact(run: Path, exported: Path, tmp_path: Path) -> None:
    assert main(["convert", "--from", str(exported), "--to", "native", "--output", str(tmp_path / "back")]) == 0
    before, _ = native.read_full_weights(run / "run")
    after, recipe = native.read_full_weights(tmp_path / "back")
    assert all(torch.equal(before[name], after[name]) for name in before) and before.keys() == after.keys()
    assert recipe["data"]["max_tiles"] == 4 and recipe["train"]["precision"] == "fp32"


def test_native_to_internvl_to_native_is_exact(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--from", str(run / "run"), "--to", "internvl", "--output", str(tmp_path / "served"), "--card"]) == 0
    assert (tmp_path / "served" / "README.md").read_text().startswith("---\nlicense: other\n")
    assert "tensors, 50,656 parameters, float32" in capsys.readouterr().out
    assert main(["convert", "--from", str(tmp_path / "served"), "--to", "native", "--output", str(tmp_path / "back")]) == 0
    before, _ = native.read_full_weights(run / "run")
    after, recipe = native.read_full_weights(tmp_path / "back")
    assert all(torch.equal(before[name], after[name]) for name in before) and before.keys() == after.keys()
    assert recipe["data"]["max_tiles"] == 4 and recipe["model"]["projector"]["hidden_size"] == 24


def test_exported_again_from_the_export_nothing_changes(exported: Path, tmp_path: Path) -> None:
    assert main(["convert", "--from", str(exported), "--to", "hf", "--output", str(tmp_path / "again")]) == 0
    for path in exported.iterdir():
        again = tmp_path / "again" / path.name
        if path.name == "verification.json":  # it also says what the export was made from
            ours, theirs = (json.loads(each.read_text()) for each in (path, again))
            assert ours.pop("identity") != theirs.pop("identity") and ours == theirs
        elif path.name != "lineage.json":
            assert path.read_bytes() == again.read_bytes(), path.name


@pytest.mark.parametrize("to", ["hf", "internvl"])
def test_an_export_of_other_weights_is_replaced_only_where_that_is_asked_for(
    run: Path, tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(tokenizer=str(run / "tokenizer"))
    native.save_full_weights(tmp_path / "other", random_weights(seed=1), recipe)
    shutil.copytree(run / "run", tmp_path / "copy")
    command = ["convert", "--to", to, "--output", str(tmp_path / "out"), "--from"]
    assert main([*command, str(run / "run")]) == 0
    before = checksum_of(tmp_path / "out/model.safetensors")
    assert main([*command, str(tmp_path / "other")]) == 2
    assert "out holds an export of other weights; choose another --output, or add --replace to replace it" in capsys.readouterr().err
    assert checksum_of(tmp_path / "out/model.safetensors") == before and not list(tmp_path.glob(".out*"))
    assert main([*command, str(tmp_path / "copy" / "step_0000000"), "--dtype", "bf16"]) == 0, "the same weights, from a copy"
    assert main([*command, str(tmp_path / "other"), "--replace"]) == 0
    verification = json.loads((tmp_path / "out/verification.json").read_text())
    del verification["identity"]  # as earlier versions wrote it
    (tmp_path / "out/verification.json").write_text(json.dumps(verification))
    assert main([*command, str(tmp_path / "other")]) == 2
    assert "out holds an export of weights that it does not name" in capsys.readouterr().err


def test_a_later_step_of_the_run_does_not_replace_the_export_of_an_earlier_one(run: Path, tmp_path: Path) -> None:
    """The earlier step may be pruned by then."""
    recipe = tiny_recipe(tokenizer=str(run / "tokenizer"))
    for number in (1, 2):
        native.save_full_weights(tmp_path / "run", random_weights(seed=number), recipe, step=number)
        command = ["convert", "--from", str(tmp_path / "run"), "--to", "hf", "--output", str(tmp_path / "out")]
        assert main(command) == (0 if number == 1 else 2)
    assert main([*command, "--replace"]) == 0


@pytest.mark.parametrize("to", ["native", "mindspeed-llm", "megatron"])
def test_other_outputs_replace_nothing(run: Path, tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["convert", "--from", str(run / "run"), "--to", to, "--output", str(tmp_path / "out")]
    assert main(command) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert main(command) == 2 and "is not empty; choose another --output" in capsys.readouterr().err
    assert main([*command, "--replace"]) == 2
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_both_formats_give_the_same_answer(run: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for checkpoint in (run / "run", run / "run" / "step_0000000", exported):
        question = ["--prompt", "What?", "--image", str(run / "wide.png"), "--max-new-tokens", "5"]
        assert main(["generate", str(checkpoint), *question]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[2]


def test_the_baseline_gives_the_same_answer(run: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for checkpoint, decode in ((exported, "cached"), (exported, "fixed"), (run / "run", "fixed")):
        question = ["--prompt", "What?", "--image", str(run / "wide.png"), "--max-new-tokens", "5", "--decode", decode]
        assert main(["generate", str(checkpoint), *question]) == 0
        said.append(capsys.readouterr())
    assert len({each.out for each in said}) == 1 and all("prompt tokens, 5 generated" in each.err for each in said)


def test_a_file_of_requests_and_a_conversation(
    run: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, answers = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    questions.write_text(f'{{"prompt": "What?", "images": ["{run / "wide.png"}"]}}\n{{"prompt": 3}}\n')
    command = ["generate", str(exported), "--batch", str(questions), "--output", str(answers), "--max-new-tokens", "5"]
    for _ in range(2):
        assert main(command) == 0
        assert f"2 of 2 lines of {questions} have a record, 1 of them an error" in capsys.readouterr().err
    with_other_settings = [*command[:-1], "6"]
    assert main(with_other_settings) == 2 and "or with other settings" in capsys.readouterr().err
    first, second = map(json.loads, sorted(answers.read_text().splitlines(), key=lambda line: json.loads(line)["line"]))
    assert second["error"] == "has a prompt of type int; expected a text"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/image {run / 'wide.png'}\nWhat?\nAnd then?\n/nothing\n"))
    assert main(["chat", str(exported), "--max-new-tokens", "5"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(first["answer"] + "\n") and said.endswith("unknown command /nothing; /help lists them\n")


def test_fewer_frames_of_a_video_on_both_formats(run: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "frames").mkdir()
    for number in range(4):
        Image.open(run / "wide.png").save(run / "frames" / f"{number}.png")
    lengths = []
    for checkpoint in (run / "run", exported):
        for limit in ([], ["--max-frames", "2"]):
            question = ["--prompt", "What?", "--video", str(run / "frames"), "--max-new-tokens", "1", *limit]
            assert main(["generate", str(checkpoint), *question]) == 0
            lengths.append(int(capsys.readouterr().err.split(" prompt tokens")[0].split()[-1]))
    assert lengths[0] == lengths[2] > lengths[1] == lengths[3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("convert --from {gone} --to hf --output {new}", "--from {gone}: no such folder"),
        ("convert --from {run} --to hf --output {new} --new-projector", "is no InternVL; leave --new-projector out"),
        ("convert --from {hf} --to native --output {new} --card", "--card describes an export; leave it out with --to native"),
        ("convert --from {run} --to hf --output {run}", "is the source; choose another folder"),
        ("convert --from {run} --to hf --output {full}", "is not an earlier export"),
        ("convert --from {hf} --to native --output {full}", "is not empty; choose another --output"),
        ("convert --from {run} --vision {hf} --to hf --output {new}", "leave --vision out"),
        ("convert --from {hf} --vision {hf} --to native --output {new}", "is a whole Long-VITA; leave --vision out"),
        ("convert --from {run} --to hf --output {new} --tokenizer {gone}", "tokenizer folder '{gone}' does not exist"),
        ("convert --from {run} --to hf --output {new} --max-shard-size many", "--max-shard-size is 'many'"),
        ("convert --from {run} --to hf --output {new} --max-shard-size 5", "--max-shard-size is 5 bytes; write the unit, as in 5GB"),
        ("convert --from {hf} --to megatron --output {new} --max-shard-size 1GB", "a megatron output has one file for each rank"),
        ("convert --from {run} --to internvl --output {new} --frame-pooling none", "of our own processor, which --to hf writes"),
        (
            "generate {gone} --prompt x",
            "checkpoint {gone}: no such folder; expected a native run or step folder, a Hugging Face folder or a MindSpeed-LLM folder",
        ),
        ("generate {full} --prompt x", "holds no whole checkpoint"),
        ("generate {hf} --prompt x --image {gone}", "image {gone}: no such file"),
        ("generate {hf} --prompt <image><image> --image {full}/notes.txt", "2 <image> tags for 1 images"),
        ("generate {hf} --prompt x --image {full}/notes.txt", "notes.txt cannot be read as a picture"),
        ("generate {hf} --prompt x --max-new-tokens 0", "--max-new-tokens is 0"),
        ("generate {hf} --prompt x --decode fixed --temperature 1 --stop y", "has no cache; leave --temperature, --stop out"),
        ("generate {hf} --prompt x --decode fixed --prefill-chunk 64", "has no cache; leave --prefill-chunk out"),
        ("generate {hf} --prompt x --decode fixed --cp 2", "--decode fixed reads it in one process, without --tp and --cp"),
        ("generate {hf} --prompt x --cp 2", "tp=1 and cp=2 need 2 processes, one for each device; found 1. Start 2"),
        ("generate {hf} --prompt x --top-p 2", "top_p=2.0; expected a number from 0 to 1"),
        ("generate {hf} --prompt x --cache-memory some", "--cache-memory is 'some'; expected something like 5GB"),
        ("generate {hf} --prompt x --cache-memory 4", "--cache-memory is '4', which has no unit; expected something like 5GB"),
        ("generate {hf} --prompt x --cache-memory 1KB", "the cache has 1,000 bytes, one block takes 65,536"),
        ("generate {hf}", "give either --prompt TEXT or --batch FILE"),
        ("generate {hf} --batch {full}/notes.txt", "--batch FILE and --output FILE go together"),
        ("generate {hf} --batch {gone} --output {new}", "batch file {gone}: no such file"),
        ("generate {hf} --prompt x --max-frames 0", "--max-frames is 0"),
    ],
)
def test_mistakes_end_in_one_line(
    run: Path, exported: Path, tmp_path: Path, arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"gone": tmp_path / "gone", "new": tmp_path / "new", "full": tmp_path / "full", "run": run / "run", "hf": exported}
    names["full"].mkdir()
    (names["full"] / "notes.txt").write_text("mine")
    capsys.readouterr()
    assert main([part.format(**names) for part in arguments.split()]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vita: error:")]
    assert len(lines) == 1 and message.format(**names) in lines[0]
    assert not names["new"].exists()


@pytest.mark.parametrize("to", ["hf", "native"])
def test_an_output_in_the_way_is_refused_before_weights_are_read(
    run: Path, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "open_full_weights", lambda path: pytest.fail("weights were read"))
    (tmp_path / "notes.txt").write_text("mine")
    for output in (tmp_path, tmp_path / "notes.txt"):
        assert main(["convert", "--from", str(run / "run"), "--to", to, "--output", str(output)]) == 2
        assert "choose another --output" in capsys.readouterr().err


@pytest.mark.parametrize(("to", "name"), [("hf", ".new.lock"), ("native", "new/run.lock")])
def test_an_output_that_another_process_writes_is_refused(
    run: Path, tmp_path: Path, to: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "open_full_weights", lambda path: pytest.fail("weights were read"))
    with held(tmp_path / name, folder=tmp_path / "new", work="vita convert", advice="wait"):
        assert main(["convert", "--from", str(run / "run"), "--to", to, "--output", str(tmp_path / "new")]) == 2
        assert f"new is in use by vita convert, process {os.getpid()} on host" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("200 mb", 2 * 10**8), ("1.5KB", 1500), ("77", 77), ("77 B", 77)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size
