"""The end of `vita train`: where the results are, and commands that run as printed."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest
import torch
import yaml
from packaging.version import Version
from torch.distributed.launcher.api import LaunchConfig

from mindspeed_vita.cli.after_training import results
from mindspeed_vita.cli.main import main
from mindspeed_vita.config import recipe_to_dict


def test_a_run_ends_with_its_results_and_the_next_commands(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "my runs" / "a"
    content = recipe_to_dict(tiny.recipe(run, train={"steps": 3}, logging={"tensorboard": True}))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    assert main(["train", "recipe.yaml"]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines()[0] == "tiny: starting 1 process, loading torch and megatron.core"
    first, *lines = captured.out.splitlines()
    assert first.startswith("tiny: 3 steps, ")
    shown = {line[:15].strip(): line[15:] for line in lines}
    assert list(shown) == ["loss curve", "metrics", "TensorBoard", "ask it", "export it"]
    assert shown["loss curve"] == f"{run}/loss.svg" and (run / "loss.svg").is_file()
    assert shown["metrics"] == f"{run}/metrics.jsonl" and (run / "metrics.jsonl").is_file()
    assert shlex.split(shown["TensorBoard"]) == ["tensorboard", "--logdir", f"{run}/tensorboard"] and any((run / "tensorboard").iterdir())
    (tmp_path / "photo.jpg").write_bytes((tiny.folder / "red0.png").read_bytes())
    assert main(["train", "recipe.yaml"]) == 0
    (again,) = capsys.readouterr().out.splitlines()
    assert again.startswith("tiny: step 3 of 3 was done before, so nothing was trained; checkpoint "), "no speed of no steps"
    for name in ("ask it", "export it"):
        program, *words = shlex.split(shown[name])
        assert program == "vita" and main(words) == 0, name
    assert (tmp_path / "my runs" / "a_hf" / "config.json").is_file()


def test_a_stage_of_four_names_the_next_and_a_run_without_files_names_none(tiny, tmp_path):
    recipe = replace(tiny.recipe(tmp_path), stage=2)
    (line,) = [line for line in results(recipe) if "next stage" in line]
    assert line.endswith(f"checkpoint.init_from={tmp_path}")
    assert not any("next stage" in line for line in results(replace(recipe, stage=4)))
    assert not any(name in line for line in results(recipe) for name in ("loss curve", "metrics", "TensorBoard", "left out"))


def test_a_curve_that_cannot_be_drawn_does_not_hide_the_checkpoint(tiny, tmp_path, capsys, monkeypatch):
    run = tmp_path / "a"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_to_dict(tiny.recipe(run, train={"steps": 2}))))
    run.mkdir()
    (run / "loss.svg").mkdir()  # writing the picture fails
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    done = capsys.readouterr()
    (line,) = done.out.splitlines()
    checkpoint = line.rpartition("checkpoint ")[2]
    assert line.startswith("tiny: 2 steps, ") and (run / checkpoint).is_dir()
    assert f"the checkpoint {checkpoint} is whole, but its loss curve was not drawn: " in done.err
    (run / "loss.svg").rmdir()
    with (run / "metrics.jsonl").open("a") as file:
        file.write("{torn\n")
    with pytest.raises(ValueError):
        results(tiny.recipe(run))


@pytest.mark.skipif(Version(torch.__version__) < Version("2.13"), reason="the help promises it of torch 2.13")
def test_torchrun_waits_as_the_help_says(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Releases of torch that read TORCH_ELASTIC_SHUTDOWN_TIMEOUT (2.13 does; 2.7.1 does not) give them that many seconds" in said
    for value, seconds in ((None, 30), ("600", 600)):
        monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
        if value:
            monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", value)
        assert LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1).shutdown_timeout == seconds


def test_a_run_that_patience_ended_says_what_trains_on_and_is_judged_again(tiny, tmp_path, capsys):
    """train.steps=N would not: the run has run out of patience."""
    held_out = {"mixture": tiny.held_out, "packs": 3, "every": 1, "patience": 1}
    still = {"steps": 9, "lr": 0.0, "min_lr": 0.0}
    content = recipe_to_dict(tiny.recipe(tmp_path / "a", eval=held_out, train=still))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    command = ["train", str(tmp_path / "recipe.yaml")]
    assert main(command) == 0 and "loss curve" in capsys.readouterr().out
    assert main([*command, "eval.gate=0.01"]) == 1
    said = capsys.readouterr()
    message, losses = said.out.splitlines()
    assert "tiny: eval.patience=1 had ended the run at step 2 of 9, so nothing was trained" in message
    assert "A larger eval.patience, or 0, trains on" in message and "train.steps=N" not in message
    assert losses.startswith("tiny: held-out loss ") and "HELD BACK" in said.err
