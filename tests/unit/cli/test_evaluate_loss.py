"""`vita eval loss`: the number of the run, from every format of its weights; table, JSON, gate, and one clear line for each mistake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from mindspeed_vita.cli.main import main
from mindspeed_vita.config import recipe_to_dict
from mindspeed_vita.engine.loop import train
from mindspeed_vita.engine.outcome import TrainResult
from mindspeed_vita.evaluation import gates, held_out_loss


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> tuple[Path, TrainResult]:
    """A run that measured itself; its recipe lies next to it."""
    folder = tmp_path_factory.mktemp("loss")
    recipe = tiny.recipe(folder / "run", eval={"mixture": tiny.held_out, "packs": 7, "every": 3}, train={"steps": 6})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_to_dict(recipe)))
    return folder, train(recipe)


@pytest.fixture(scope="module")
def exported(run) -> Path:
    folder = run[0] / "hf"
    assert main(["convert", "--from", str(run[0] / "run"), "--to", "hf", "--dtype", "fp32", "--output", str(folder)]) == 0
    return folder


def measured(folder: Path, output: Path, *arguments: str) -> dict:
    assert main(["eval", "loss", str(folder), "--output", str(output), *arguments]) == 0
    return json.loads(output.read_text())


def test_every_format_gives_the_number_of_the_run(run, exported, tmp_path, capsys):
    folder, result = run
    (_, expected) = result.held_out[-1]
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    recipe = ["--recipe", str(folder / "recipe.yaml")]
    for target in ("mindspeed-llm", "native"):
        assert main(["convert", "--from", str(exported), "--to", target, "--output", str(tmp_path / target)]) == 0
    sources = {"run": folder / "run", "step": folder / "run" / "step_0000006", "hf": exported, "mindspeed": tmp_path / "mindspeed-llm"}
    own = ("run", "step")
    found = {name: measured(path, tmp_path / f"{name}.json", *([] if name in own else recipe)) for name, path in sources.items()}
    found["back"] = measured(tmp_path / "native", tmp_path / "back.json", *recipe)
    for name, content in found.items():
        assert content["loss"] == pytest.approx(expected, abs=1e-5), name
        assert content["loss"] == pytest.approx(found["run"]["loss"], abs=1e-5), name
        assert (content["packs"], content["seq_length"], content["data"]) == (7, 128, lines[-1]["eval/data"]), name
        assert content["accuracy"] == lines[-1]["eval/accuracy"] and set(content["sources"]) == {"seen", "counted"}
    table = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  all")]
    assert [float(row[1]) for row in table] == pytest.approx([expected] * 5, abs=1e-5) and table[0][3] == str(lines[-1]["eval/tokens"])


def test_options_choose_other_packs(run, tiny, tmp_path):
    options = ["--mixture", tiny.two_sources, "--packs", "0", "--seq-length", "64", "--seed", "5"]
    found = measured(run[0] / "run", tmp_path / "a.json", *options)
    assert set(found["sources"]) == {"pictures", "text"} and found["seq_length"] == 64 and found["packs"] > 7
    assert not (run[0] / "run" / "gates").exists(), "no gate without --at-most"


def test_a_gate_ends_with_its_status_and_holds_the_next_stage_back(run, exported, tiny, tmp_path, capsys):
    folder, _ = run
    following = tmp_path / "next.yaml"
    following.write_text(yaml.safe_dump(recipe_to_dict(tiny.recipe(tmp_path / "next", checkpoint={"init_from": str(folder / "run")}))))
    assert main(["eval", "loss", str(folder / "run"), "--at-most", "0.5"]) == 1
    assert "passes with at most 0.5: HELD BACK (" in capsys.readouterr().out
    assert main(["train", str(following), "train.steps=1"]) == 2 and main(["check", str(following)]) == 2
    said = capsys.readouterr()
    assert "step_0000006 is held back: gate held_out_loss: measured" in said.err and "PROBLEM: " in said.out
    assert main(["eval", "loss", str(folder / "run"), "--at-most", "50"]) == 0 and main(["check", str(following)]) == 0
    assert main(["eval", "loss", str(exported), "--recipe", str(folder / "recipe.yaml"), "--at-most", "0.5"]) == 1
    assert not (exported / "gates").exists()


def test_a_gate_is_about_the_step_that_was_measured(run, tmp_path, monkeypatch):
    """The run that is measured trains on: a newer step appears, and the measured one is pruned."""
    folder = shutil.copytree(run[0] / "run", tmp_path / "run")
    build = held_out_loss.open_held_out

    def meanwhile(*arguments):
        dataset = build(*arguments)
        shutil.copytree(folder / "step_0000006", folder / "step_0000009")
        return dataset

    def pruned(*arguments):
        shutil.rmtree(folder / "step_0000006")
        return judge(*arguments)

    judge = gates.judge
    monkeypatch.setattr(held_out_loss, "open_held_out", meanwhile)
    monkeypatch.setattr(gates, "judge", pruned)
    assert main(["eval", "loss", str(folder), "--at-most", "0.5", "--output", str(tmp_path / "out.json")]) == 1
    assert [path.name for path in (folder / "gates").iterdir()] == ["held_out_loss.step_0000006.json"]
    assert json.loads((tmp_path / "out.json").read_text())["checkpoint"] == str(folder / "step_0000006")


def test_a_repeated_measurement_writes_a_failed_sample_down_once(run, tiny, tmp_path, capsys):
    folder = shutil.copytree(run[0] / "run", tmp_path / "run")
    picture = tiny.folder / "green1.png"
    content, others = picture.read_bytes(), json.dumps({"run": "another", "step": 0})
    try:
        picture.write_bytes(content[:60])  # its header is whole
        for _ in range(2):
            assert main(["eval", "loss", str(folder), "--packs", "0"]) == 0
            (said,) = [line for line in capsys.readouterr().err.splitlines() if "did not decode" in line]
            quarantine = Path(said.split("; ")[1].removesuffix(" names them"))
            with quarantine.open("a") as file:
                file.write(others + "\n")
    finally:
        picture.write_bytes(content)
    noted = [line for line in quarantine.read_text().splitlines() if str(folder) in line]
    assert len(noted) == 1 and quarantine.read_text().count(others) == 2, "the lines of others stay"


def test_train_ends_with_status_1_where_its_gate_holds_back(run, capsys):
    folder, result = run
    assert main(["train", str(folder / "recipe.yaml"), "eval.gate=0.5"]) == 1
    said = capsys.readouterr()
    assert "vita: gate held_out_loss: measured" in said.err and "HELD BACK" in said.err
    assert f"held-out loss {result.held_out[0][1]:.4f} -> {result.held_out[-1][1]:.4f}" in said.out
    assert main(["train", str(folder / "recipe.yaml"), "eval.gate=50"]) == 0, "judged again, nothing trained"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{hf}"], "no held-out mixture is named; add --mixture FILE, or --recipe"),
        (["{run}", "--packs", "-1"], "--packs is -1; expected at least 0"),
        (["{run}", "--at-most", "0"], "--at-most is 0.0; expected a loss above 0"),
        (["{run}", "--mixture", "nowhere.yaml"], "held-out data: mixture 'nowhere.yaml' cannot be read"),
        (["{run}", "--packs", "400"], "eval.packs=400, but the held-out mixture"),
        (["nowhere"], "nowhere: no such folder; expected a checkpoint"),
        (["{run}", "--tp", "2"], "tp*pp*cp=2*1*1=2 does not divide the number of processes, 1;"),
    ],
)
def test_mistakes_end_in_one_line(run, exported, capsys, arguments, message):
    told = [word.format(run=run[0] / "run", hf=exported) for word in arguments]
    assert main(["eval", "loss", *told]) == 2
    assert message in capsys.readouterr().err


def test_check_looks_at_the_held_out_mixture(run, capsys):
    recipe = str(run[0] / "recipe.yaml")
    assert main(["check", recipe]) == 0
    assert "held out   " in (said := capsys.readouterr().out) and "2 sources, all there; 7 packs every 3 steps" in said
    assert main(["check", recipe, "eval.mixture=nowhere.yaml"]) == 2
    assert "held out   PROBLEM: mixture 'nowhere.yaml' cannot be read" in capsys.readouterr().out
