"""`vita verify` between formats, and `vita checkpoint` on the steps of a run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mindspeed_vita.checkpoint.gates import Gate, check_handover, gates_of, write_gate
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.checkpoint.native import shards
from mindspeed_vita.cli.main import main
from mindspeed_vita.files.digest import checksum_of
from tests.tiny_checkpoint import TINY, make_tokenizer, random_weights, tiny_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """native, hf and ranks hold the same model; one element of other differs."""
    folder = tmp_path_factory.mktemp("verify")
    make_tokenizer(folder / "tokenizer")
    recipe, weights = tiny_recipe(tokenizer=str(folder / "tokenizer")), random_weights()
    native.save_full_weights(folder / "native", weights, recipe)
    for to, name, more in (("hf", "hf", []), ("hf", "bf16", ["--dtype", "bf16"]), ("mindspeed-llm", "ranks", ["--tp", "2", "--pp", "2"])):
        assert main(["convert", "--from", str(folder / "native"), "--to", to, "--output", str(folder / name), *more]) == 0
    weights["vision.layers.1.ls2"][3] += 0.5
    native.save_full_weights(folder / "other", weights, recipe)
    return folder


@pytest.mark.parametrize(("first", "second"), [("native", "hf"), ("hf", "ranks"), ("ranks", "native"), ("native", "bf16"), ("hf", "hf")])
def test_one_model_in_two_formats_is_the_same(folder: Path, tmp_path: Path, first: str, second: str) -> None:
    assert main(["verify", str(folder / first), str(folder / second), "--report", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["same"] and report["num_tensors"] == len(random_weights()) == len(report["xxh128"])
    assert report["types"] == {"float32, bfloat16" if second == "bf16" else "float32, float32": report["num_tensors"]}


def test_a_difference_is_named_and_ends_with_1(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder / "hf"), str(folder / "other"), "--report", str(tmp_path / "report.json")]) == 1
    assert "vision.layers.1.ls2: 1 of 16 elements differ, by up to 0.5" in capsys.readouterr().out
    assert not json.loads((tmp_path / "report.json").read_text())["same"]


def test_values_that_a_type_cannot_hold_are_a_difference(folder: Path, tmp_path: Path) -> None:
    assert main(["verify", str(folder / "bf16"), str(folder / "native"), "--report", str(tmp_path / "report.json")]) == 1


def test_logits_are_compared_layer_by_layer(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = str(tmp_path / "report.json")
    assert main(["verify", str(folder / "native"), str(folder / "bf16"), "--level", "logits", "--report", report]) == 0
    said = capsys.readouterr().out
    assert f"{folder / 'bf16'}: computed by the exported modeling_long_vita.py" in said
    assert "both compute the same: 9 layers, 29 tokens" in said
    assert main(["verify", str(folder / "other"), str(folder / "hf"), "--level", "logits", "--report", report]) == 1
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if line.endswith("   differs")] == ["vision.layers.1"]
    followers = [line.split()[0] for line in said.splitlines() if line.endswith("differs from the start")]
    assert "logits" in followers and said.endswith("\nvision.layers.1 computes something else\n")
    content = json.loads(Path(report).read_text())
    assert not content["same"] and content["level"] == "logits" and content["first_difference"] == "vision.layers.1"
    assert content["points"][2]["alone"]["share"] > 0.01 > content["points"][3]["alone"]["share"]


def test_logits_of_a_folder_with_a_missing_shard_are_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--max-shard-size", "40KB", "--output", str(tmp_path / "hf")]
    assert main(["convert", "--from", str(folder / "native"), "--to", "hf", *more]) == 0
    gone = sorted((tmp_path / "hf").glob("model-*.safetensors"))[1]
    gone.unlink()
    command = ["verify", str(folder / "native"), str(tmp_path / "hf"), "--level", "logits", "--report", str(tmp_path / "report.json")]
    assert main(command) == 2
    assert f"lacks {gone.name} of its index; download or copy the folder again" in capsys.readouterr().err
    assert main([*command[:3], "--trust-remote-code"]) == 2 and not (tmp_path / "report.json").exists()
    assert "--level hash runs no code of a folder; leave it out" in capsys.readouterr().err


def test_a_report_does_not_replace_an_exports_own_verification(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    own = (folder / "hf" / "verification.json").read_bytes()
    monkeypatch.chdir(folder / "hf")
    assert main(["verify", str(folder / "hf"), str(folder / "native")]) == 2
    assert "verification.json is no report of vita verify" in capsys.readouterr().err
    assert (folder / "hf" / "verification.json").read_bytes() == own


def test_a_whole_model_takes_no_tower_whatever_lies_beside_it(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "hf", tmp_path / "released")
    (tmp_path / "released" / "verification.json").unlink()  # a released folder has none
    report, tower = str(tmp_path / "report.json"), str(folder / "no_tower_is_read")
    assert main(["verify", str(tmp_path / "released"), str(folder / "native"), "--vision", tower, "--report", report]) == 0


def test_settings_that_change_the_model_are_a_difference(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = replace(TINY, language=replace(TINY.language, rope_base=1e4))
    native.save_full_weights(tmp_path / "stretched", random_weights(), tiny_recipe(model))
    assert main(["verify", str(folder / "native"), str(tmp_path / "stretched"), "--report", str(tmp_path / "report.json")]) == 1
    assert "model.language.rope_base: 500000.0 in the first, 10000.0 in the second" in capsys.readouterr().out


@pytest.mark.parametrize("bad", ["native", "ranks"])
def test_a_damaged_side_is_an_error(folder: Path, tmp_path: Path, bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder / bad, tmp_path / "bad")
    path = next(path for path in sorted((tmp_path / "bad").rglob("*")) if path.suffix in (".safetensors", ".pt"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert main(["verify", str(tmp_path / "bad"), str(folder / "hf"), "--report", str(tmp_path / "report.json")]) == 2
    assert path.name in capsys.readouterr().err and not (tmp_path / "report.json").exists()


def step(folder: Path, number: int) -> Path:
    """A step as two ranks would write it: pieces of weights and of the optimizer, state and random states."""
    from mindspeed_vita.checkpoint.native import atomic
    from mindspeed_vita.config import recipe_to_dict
    from mindspeed_vita.files.writing import write_json

    temp, sums = atomic.temporary(folder, number), {}
    for part in ("weights", "optimizer"):
        (temp / part).mkdir(parents=True)
        full = torch.arange(24.0).view(6, 4) + number
        for rank in range(2):
            pieces = [shards.Piece(key=f"{part}.a", offset=(3 * rank, 0), global_shape=(6, 4), data=full[3 * rank : 3 * rank + 3])]
            pieces += [shards.whole(f"{part}.b", torch.tensor([float("nan"), 1.0]))] if rank else []
            name = f"{part}/rank_{rank:05d}.safetensors"
            sums[name] = shards.write(temp / name, pieces) or ""
    sums["rng.safetensors"] = shards.write(temp / "rng.safetensors", [shards.whole("0/cpu", torch.get_rng_state())]) or ""
    sums["recipe.json"] = write_json(temp / "recipe.json", recipe_to_dict(tiny_recipe()))
    layout = {"tp": 2, "pp": 1, "cp": 1, "dp": 1}
    state = {"step": number, "packs": number, "fingerprint": "a", "failed_samples": [], "layout": layout}
    sums["state.json"] = write_json(temp / "state.json", state)
    atomic.publish(temp, folder / atomic.step_name(number), sums)
    return folder / atomic.step_name(number)


def test_steps_are_listed_verified_and_pruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    for number in (1, 2, 3):
        step(run, number)
    assert main(["checkpoint", "list", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[3].startswith("Judged by names and sizes of files; `vita checkpoint verify ")
    assert lines[0].startswith("step_0000001: ") and lines[0].endswith("resumes, written with tp=2 pp=1 cp=1 dp=1")
    (run / "step_0000002/state.json").write_text("{}")
    assert main(["checkpoint", "verify", str(run)]) == 1
    assert "step_0000002: state.json does not match its checksum\nstep_0000003: whole" in capsys.readouterr().out
    assert main(["checkpoint", "prune", str(run), "--keep", "1", "--dry-run"]) == 0
    assert len(list(run.iterdir())) == 3
    assert main(["checkpoint", "prune", str(run), "--keep", "1"]) == 0
    assert [path.name for path in run.iterdir()] == ["step_0000003"]
    assert main(["checkpoint", "prune", str(run), "--keep", "0"]) == 2
    assert main(["checkpoint", "verify", str(run / "step_0000003")]) == 0


def test_a_step_that_lacks_a_file_or_the_end_of_one_is_listed_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    for number in (1, 2, 3):
        step(run, number)
    (run / "step_0000001/optimizer/rank_00001.safetensors").unlink()
    path = run / "step_0000002/weights/rank_00000.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    assert main(["checkpoint", "list", str(run)]) == 0
    first, second, third, _ = capsys.readouterr().out.splitlines()
    assert first.endswith("does not load: optimizer/rank_00001.safetensors is missing")
    assert "does not load: weights/rank_00000.safetensors is not a whole safetensors file: it has" in second
    assert "resumes, written with" in third


def test_resharding_carries_over_files_of_every_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that a later version records with the step, and those that somebody added to it."""
    old = step(tmp_path / "run", 7)
    for name in ("notes.txt", "weights/notes.txt", "weights_of_the_teacher.bin", "evaluation/scores.json"):
        (old / name).parent.mkdir(exist_ok=True)
        (old / name).write_text(name)
    sums = json.loads((old / "checksums.json").read_text())
    sums["xxh128"]["weights_of_the_teacher.bin"] = checksum_of(old / "weights_of_the_teacher.bin")
    (old / "checksums.json").write_text(json.dumps(sums))
    assert main(["checkpoint", "reshard", str(old), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "no checksum of them: evaluation/scores.json, notes.txt, weights/notes.txt\n" in said
    new = tmp_path / "out/step_0000007"
    for name in ("notes.txt", "weights/notes.txt", "weights_of_the_teacher.bin", "evaluation/scores.json"):
        assert (new / name).read_text() == name
    recorded = json.loads((new / "checksums.json").read_text())["xxh128"]
    assert recorded["weights_of_the_teacher.bin"] == sums["xxh128"]["weights_of_the_teacher.bin"] and "notes.txt" not in recorded


def test_a_step_that_is_held_back_stays_so_when_it_is_resharded(tmp_path: Path) -> None:
    held = Gate(name="needle", measured=0.2, bound=0.9, better="higher", detail="made up")
    write_gate(step(tmp_path / "run", 7), held)
    write_gate(step(tmp_path / "run", 8), replace(held, measured=1.0))
    assert main(["checkpoint", "reshard", str(tmp_path / "run" / "step_0000007"), "--output", str(tmp_path / "out")]) == 0
    assert gates_of(tmp_path / "out" / "step_0000007") == {tmp_path / "out" / "gates" / "needle.step_0000007.json": held}
    with pytest.raises(ValueError, match="step_0000007 is held back: gate needle"):
        check_handover(tmp_path / "out")


def test_a_conversion_says_that_its_source_is_held_back(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(folder / "native", tmp_path / "run")
    gate = write_gate(run / "step_0000000", Gate(name="needle", measured=0.2, bound=0.9, better="higher"))
    assert main(["convert", "--from", str(run), "--to", "hf", "--output", str(tmp_path / "hf")]) == 0
    said = capsys.readouterr().out
    assert f"{run} is held back: gate needle: measured 0.2, passes with at least 0.9: HELD BACK ({gate}); the copy carries no gate" in said


def test_a_resharded_step_holds_the_same_in_whole_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = step(tmp_path / "run", 7)
    assert main(["checkpoint", "reshard", str(tmp_path / "run"), "--output", str(tmp_path / "out"), "--max-shard-size", "50"]) == 0
    new = tmp_path / "out" / "step_0000007"
    assert main(["checkpoint", "verify", str(new)]) == 0
    for part in ("weights", "optimizer"):
        ours, theirs = shards.Reader(old / part), shards.Reader(new / part)
        assert ours.keys() == theirs.keys() == {f"{part}.a", f"{part}.b"}
        for key in ours.keys():
            assert ours.tensor(key).numpy().tobytes() == theirs.tensor(key).numpy().tobytes()
        assert sorted(path.name for path in (new / part).iterdir()) == ["rank_00000.safetensors", "rank_00001.safetensors"]
    for name in ("recipe.json", "state.json", "rng.safetensors"):
        assert checksum_of(old / name) == checksum_of(new / name)
    assert main(["checkpoint", "reshard", str(old), "--output", str(tmp_path / "out")]) == 2
    assert "is there already; choose another --output" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["step_0000007"]
