"""A pipeline of two tiny stages: a gate holds it back once and lets it through once, and what is done is not done again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mindspeed_vita.cli.main import main
from mindspeed_vita.config import recipe_to_dict
from mindspeed_vita.engine.stopping import SAVED
from mindspeed_vita.pipeline.handoff import handoff
from mindspeed_vita.pipeline.pipeline_file import load_pipeline
from mindspeed_vita.pipeline.runner import gate_command, train_command


def write(tiny: Any, folder: Path, *, bound: float = 1.0, steps: int = 3, **changes: Any) -> Path:
    """Recipes of two stages and the pipeline over them."""
    folder.mkdir(exist_ok=True)
    for name, sections in (("first", {"train": {"steps": steps}}), ("second", {"train": {"steps": 2}, "data": {"seq_length": 256}})):
        recipe = {**recipe_to_dict(tiny.recipe(folder / "runs" / name, **sections)), "name": name}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    first = {"name": "first", "recipe": "first.yaml", "gates": [f"loss --mixture {tiny.held_out} --at-most {bound}"]}
    second = {"name": "second", "recipe": "second.yaml", "after": [f"convert --from {{run}} --to hf --output {folder / 'export'}"]}
    content = {"name": "tiny", "stages": [{**first, **changes.get("first", {})}, {**second, **changes.get("second", {})}]}
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_gate_holds_a_stage_back_and_another_bound_lets_it_through(tiny, tmp_path, capfd):
    path = write(tiny, tmp_path, bound=0.01)
    assert main(["pipeline", str(path)]) == 1
    said = capfd.readouterr().out
    assert "tiny, first: not begun; training" in said and "tiny, first: HELD BACK: gate held_out_loss: measured " in said
    assert not (tmp_path / "runs" / "second").exists(), "the next stage did not start"

    path = write(tiny, tmp_path, bound=100)
    assert main(["pipeline", str(path)]) == 0
    said = capfd.readouterr().out
    assert "tiny, first: trained before" in said and "tiny, first: done" in said and said.rstrip().endswith("tiny, second: done")
    assert (tmp_path / "export" / "config.json").is_file()

    assert main(["pipeline", str(path)]) == 0
    said = capfd.readouterr().out
    assert "$ " not in said, "nothing is run again"

    assert main(["lineage", str(tmp_path / "export")]) == 0
    names = [line.lstrip("└─ ").split(",")[0] for line in capfd.readouterr().out.splitlines()]
    assert names == ["hf (conversion)", "second (training)", "first (training)"]

    path = write(tiny, tmp_path, bound=100, steps=4)
    assert main(["pipeline", str(path)]) == 0
    again = f"NOTE: trained from step 3 of first, and first has step 4 now; remove {tmp_path / 'runs' / 'second'} to train it again"
    assert f"tiny, second: {again}" in capfd.readouterr().out, "the first stage went on, and the second is of its earlier weights"
    assert main(["pipeline", str(path), "--dry-run"]) == 0 and f"  {again}" in capfd.readouterr().out.splitlines()


def test_a_stopped_pipeline_goes_on_where_it_was(tiny, tmp_path):
    path = write(tiny, tmp_path, steps=3000, first={"gates": []})
    command = [sys.executable, "-m", "mindspeed_vita.cli.main", "pipeline", str(path)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    metrics, deadline = tmp_path / "runs" / "first" / "metrics.jsonl", time.monotonic() + 300
    while not (metrics.is_file() and metrics.read_text().count("\n") > 2):
        assert child.poll() is None and time.monotonic() < deadline, child.stderr
        time.sleep(0.2)
    child.send_signal(signal.SIGUSR1)
    _, errors = child.communicate(timeout=300)
    assert child.returncode == SAVED and b"the same command continues from" in errors
    (step,) = (tmp_path / "runs" / "first").glob("step_*")
    reached = int(step.name.removeprefix("step_"))
    path = write(tiny, tmp_path, steps=reached + 1, first={"gates": []}, second={"after": []})
    assert main(["pipeline", str(path), "--until", "first"]) == 0
    losses = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert losses == list(range(1, reached + 2)), "no step was lost or made twice"


def test_a_dry_run_shows_what_is_taken_over_and_trains_nothing(tiny, tmp_path, capsys):
    path = write(tiny, tmp_path, second={"processes": 2})
    assert main(["pipeline", str(path), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "first: not begun; starts from random weights"
    assert "  context  128 -> 256 tokens" in lines and "  weights  the same architecture" in lines
    assert any("mindspeed_vita.cli.torchrun" in line and "checkpoint.init_from=" in line for line in lines)
    assert lines[-1] == "PASS: 2 stages would run" and not (tmp_path / "runs").exists()
    recipe = yaml.safe_load((tmp_path / "second.yaml").read_text())
    recipe["model"]["language"]["ffn_hidden_size"] = 96
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["pipeline", str(path), "--dry-run"]) == 2
    told = capsys.readouterr().out
    assert "PROBLEM: the architecture changes (model.language.ffn_hidden_size: 64 -> 96)" in told
    assert main(["pipeline", str(path)]) == 2 and "second, from first: the architecture changes" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_what_changes_between_two_stages_is_named(tiny, tmp_path):
    before = tiny.recipe(tmp_path, train={"modules": ["projector"]}, data={"resets": True})
    rope = {"language": {**recipe_to_dict(before)["model"]["language"], "rope_base": 3e6}}
    after = tiny.recipe(tmp_path, data={"resets": False, "template": "qwen2"}, model={**recipe_to_dict(before)["model"], **rope})
    found = handoff(before, after)
    assert found.trained == (("projector",), ("vision", "projector", "language")) and found.context == (128, 128)
    assert found.rope and all(line.startswith("model.language.rope_base: ") for line in found.rope)
    assert "resets: True -> False" in found.data and not found.weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gates": ["generate x"]}, "expected loss, needle, choice and their arguments"),
        ({"gates": ["needle --lengths 4"]}, "has no bound; add --pass"),
        ({"recipe": "none.yaml"}, "none.yaml: no such file"),
        ({"start": "second"}, "start='second' is no earlier stage"),
        ({"name": "second"}, "stages have the same name: second"),
        ({"script": "none.sh"}, "none.sh: no such file"),
        ({"setings": []}, "unknown key stages[0].setings"),
        ({"processes": 0}, "stages[0].processes=0; expected at least 1"),
        ({"settings": ["train.stepz=3"]}, "unknown key train.stepz"),
        ({"name": "recipe"}, "a stage has the name 'recipe', which `start` has a meaning for"),
        ({"gates": ["loss --mixture x --at-most low"]}, "first: gate 'loss --mixture x --at-most low': argument --at-most: invalid float"),
        ({"gates": ["loss --mixture x --at-most 1 --tp two"]}, "argument --tp: invalid"),
        ({"gates": ["loss --mixture x --at-most"]}, "argument --at-most: expected one argument"),
        ({"gates": ["needle --pass 0.9 --lengths 4 --lenghts 4"]}, "unrecognized arguments: --lenghts 4"),
        ({"after": ["konvert --from {run}"]}, "first: after 'konvert --from {run}': unknown command 'konvert'"),
        ({"after": ["convert --from {run}"]}, "first: after 'convert --from {run}': the following arguments are required: --to, --output"),
        ({"after": ["convert --help"]}, "it asks for help"),
        ({"after": [""]}, "first: after '': unknown command ''"),
    ],
)
def test_a_wrong_file_is_told_in_one_message(tiny, tmp_path, capsys, change, message):
    assert main(["pipeline", str(write(tiny, tmp_path, first=change))]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"settings": ["lora.rank=4"]}, {}, "second, from first: whole modules are to train, and the weights are adapters"),
        ({"settings": ["lora.rank=4"]}, {"settings": ["lora.rank=8"]}, "the adapters differ (lora.rank: 4 there, 8 here)"),
        ({"settings": ["lora.rank=4"]}, {"settings": ["lora.rank=4", "lora.targets=[q_proj]"]}, "lora.targets of language: ("),
        ({"engine": "hf"}, {}, "a run of engine builtin does not start from weights of engine hf; convert them in `after`"),
        ({"engine": "mindspeed-llm"}, {}, "engine builtin does not start from weights of engine mindspeed-llm"),
        ({"engine": "hf"}, {"engine": "mindspeed-llm"}, "engine mindspeed-llm does not start from weights of engine hf"),
    ],
)
def test_a_stage_that_could_not_start_is_told_before_anything_is_trained(tiny, tmp_path, capsys, first, second, message):
    path = write(tiny, tmp_path, first={"gates": [], **first}, second={"after": [], **second})
    assert main(["pipeline", str(path)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert main(["pipeline", str(path), "--dry-run"]) == 2
    assert message.removeprefix("second, from first: ") in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"settings": ["lora.rank=4"]}),
        ({"settings": ["lora.rank=4"]}, {"settings": ["lora.rank=4"]}),
        ({}, {"engine": "hf"}),
        ({"engine": "hf"}, {"engine": "hf"}),
        ({"engine": "hf"}, {"settings": ["lora.rank=4"]}),
        ({"engine": "mindspeed-llm"}, {"script": "run.sh"}),
    ],
)
def test_a_stage_that_can_start_has_no_problem(tiny, tmp_path, first, second):
    (tmp_path / "run.sh").write_text("true\n")
    before, after = load_pipeline(write(tiny, tmp_path, first=first, second=second)).stages
    assert not handoff(before.recipe, after.recipe, engines=(before.engine, after.engine)).problems
    trained = "runs/first/export" if before.engine == "hf" else "runs/first"
    assert after.recipe.checkpoint.init_from == str(tmp_path / trained)


@pytest.mark.parametrize(
    ("place", "whose"),
    [("runs/second", "second, which comes later"), ("runs/second/step_0000002", "second, which comes later"), ("runs/first", "itself")],
)
def test_a_stage_that_starts_from_a_later_one_is_refused(tiny, tmp_path, capsys, place, whose):
    circle = {"start": "recipe", "settings": [f"checkpoint.init_from={tmp_path / 'runs' / '..' / place}"]}
    assert main(["pipeline", str(write(tiny, tmp_path, first=circle))]) == 2
    assert f"{place} is of {whose}; name weights that are there before" in capsys.readouterr().err


def test_stages_that_share_a_folder_and_a_missing_start_are_refused(tiny, tmp_path, capsys):
    shared = [f"checkpoint.directory={tmp_path / 'runs' / 'first'}"]
    assert main(["pipeline", str(write(tiny, tmp_path, second={"settings": shared}))]) == 2
    assert "first and second write to one folder" in capsys.readouterr().err
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    linked = [f"checkpoint.directory={tmp_path / 'link' / 'first'}"]
    assert main(["pipeline", str(write(tiny, tmp_path, second={"settings": linked}))]) == 2
    assert "first and second write to one folder" in capsys.readouterr().err
    path = str(write(tiny, tmp_path))
    assert main(["pipeline", path, "--from", "second"]) == 2
    assert "holds no checkpoint; run that stage first (--from first)" in capsys.readouterr().err
    assert main(["pipeline", path, "--from", "third"]) == 2
    assert "--from 'third': no such stage; expected one of first, second" in capsys.readouterr().err
    assert main(["pipeline", path, "--from", "second", "--until", "first"]) == 2
    assert "--from second comes after --until first" in capsys.readouterr().err


def test_commands_say_how_many_processes_they_need(tiny, tmp_path):
    needle = "needle --lengths 4,8 --pass 0.9 --tp 2 --cp=4"
    script = tmp_path / "run.sh"
    script.write_text("echo\n")
    path = write(tiny, tmp_path, first={"gates": [needle]}, second={"script": "run.sh", "engine": "mindspeed-llm"})
    first, second = load_pipeline(path).stages
    command = gate_command(first, needle, first.run / "step_0000003")
    assert command[1:7] == ["-m", "mindspeed_vita.cli.torchrun", "--standalone", "--nproc_per_node", "8", "-m"]
    assert command[-2:] == ["--output", str(first.run / "gates" / "needle.step_0000003")]
    assert train_command(second, tmp_path) == ["bash", str(script), f"checkpoint.init_from={first.run}"]
    assert train_command(first, tmp_path) == [sys.executable, "-m", "mindspeed_vita.cli.main", "train", str(tmp_path / "first.yaml")]


def test_other_nodes_wait_for_the_first_and_hear_of_its_failure(tiny, tmp_path):
    """Two processes stand for two nodes that see one folder. The script stands for a run over both."""
    path = write(tiny, tmp_path, first={"script": "run.sh", "gates": ["loss --mixture none.yaml --at-most 1"]})
    train = f"{sys.executable} -m mindspeed_vita.cli.main train {tmp_path}/first.yaml"
    saved = f"{tmp_path}/runs/first/step_*/checksums.json"
    script = f'[ "$NODE_RANK" = 1 ] || {train}\nwhile ! ls {saved} 2>/dev/null; do sleep 0.2; done\n'
    (tmp_path / "run.sh").write_text(script)
    command = [sys.executable, "-m", "mindspeed_vita.cli.main", "pipeline", str(path)]
    nodes = []
    for number in "10":
        environment = {**os.environ, "NODE_RANK": number, "OMP_NUM_THREADS": "1"}
        nodes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment))
    other, first = (node.communicate(timeout=300)[0] for node in nodes)
    assert [node.returncode for node in nodes] == [2, 2]
    assert "tiny, first: the gate 'loss --mixture none.yaml --at-most 1' could not be measured (status 2)" in first
    assert "waiting for node 0 to measure the gates" in other and "on node 0: tiny, first: the gate" in other


def test_stages_in_the_wrong_order_are_pointed_out(tiny, tmp_path, capsys):
    path = write(tiny, tmp_path)
    for name, stage in (("first", 4), ("second", 1)):
        recipe = yaml.safe_load((tmp_path / f"{name}.yaml").read_text())
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**recipe, "stage": stage}))
    assert main(["pipeline", str(path), "--dry-run"]) == 0
    told = capsys.readouterr().out.splitlines()
    first = told[: next(number for number, line in enumerate(told) if line.startswith("second: "))]
    assert not [line for line in first if "unchanged" in line or "the same" in line], "random weights are compared with nothing"
    assert "  order    NOTE: a recipe of stage 1 starts from one of stage 4; the paper trains 1, 2, 3, 4. Is the order right?" in told


def test_a_stage_without_a_recipe_is_one_sentence(tmp_path, capsys):
    (tmp_path / "pipeline.yaml").write_text("name: x\nstages: [{name: a, recpe: b.yaml}]\n")
    assert main(["pipeline", str(tmp_path / "pipeline.yaml")]) == 2
    assert "(1) the key stages[0].recipe is missing; (2) unknown key stages[0].recpe; did you mean" in capsys.readouterr().err
