"""`vita` finds its subcommands, and an error of the user ends in one line and status 2."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mindspeed_vita.cli import main as cli
from mindspeed_vita.engine.faults import TrainingDiverged
from mindspeed_vita.engine.session import NotConnected
from mindspeed_vita.engine.stopping import Stopped


@pytest.fixture
def command(monkeypatch):
    """A subcommand `try` that raises what one gives it."""

    def build(error: BaseException) -> None:
        def run(arguments) -> int:
            raise error

        module = SimpleNamespace(add_arguments=lambda parser: None, run=run)
        monkeypatch.setitem(sys.modules, "vita_test_command", module)
        monkeypatch.setitem(cli.COMMANDS, "try", ("vita_test_command", "raise"))

    return build


@pytest.mark.parametrize(
    "error, line, status",
    [
        (ValueError("lr=x;\n use a number"), "vita: error: lr=x; use a number", 2),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.yaml"), "vita: error: a.yaml: No such file or directory", 2),
        (OSError("cannot save into runs/a"), "vita: error: cannot save into runs/a", 2),
        (TrainingDiverged("step 3: the loss is nan"), "vita: error: step 3: the loss is nan", 2),
        (NotConnected("process 1 of 2 could not be connected"), "vita: error: process 1 of 2 could not be connected", 77),
        (Stopped(15, "stopped by SIGTERM; nothing lost"), "vita: stopped by SIGTERM; nothing lost", 143),
    ],
)
def test_an_error_of_the_user_is_one_line(command, capsys, error, line, status):
    command(error)
    assert cli.main(["try"]) == status
    assert capsys.readouterr().err == line + "\n"


def test_a_bug_shows_its_traceback(command, capsys):
    command(KeyError("oops"))
    assert cli.main(["try"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_unknown_command_names_the_known_ones(capsys):
    assert cli.main(["trian"]) == 2
    assert f"expected one of {', '.join(cli.COMMANDS)}" in capsys.readouterr().err


def test_help_lists_the_commands(capsys):
    assert cli.main(["--help"]) == 0
    assert "train a recipe" in capsys.readouterr().out
    assert cli.main([]) == 2


def test_train_help_says_where_recipe_keys_are_documented(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    assert "mindspeed_vita/config/recipe.py" in capsys.readouterr().out


def test_print_recipe_fills_in_the_defaults(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: mine\n")
    assert cli.main(["train", str(path), "train.lr=3e-4", "--print-recipe"]) == 0
    printed = capsys.readouterr().out
    assert "name: mine" in printed and "lr: 0.0003" in printed and "save_every: 500" in printed


@pytest.mark.parametrize(
    "override, part",
    [("train.lrr=1", "train.lrr (from the command line); did you mean train.lr?"), ("parallel.tp=2", "the number of processes, 1;")],
)
def test_a_recipe_that_cannot_run_is_one_line(tmp_path, capsys, override, part):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: mine\n")
    assert cli.main(["train", str(path), override]) == 2
    error = capsys.readouterr().err
    assert part in error and error.count("\n") == 1


@pytest.mark.parametrize("words", [["train", "recipe.yaml", "--print-recipe"], ["train", "--help"], ["--help"], ["data", "--help"]])
def test_output_that_nobody_reads_ends_quietly(tmp_path, words):
    (tmp_path / "recipe.yaml").write_text("name: mine\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "mindspeed_vita.cli.main", *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()  # as `| head` does, but before the first line
    error = process.stderr.read()
    process.stderr.close()
    # argparse itself is content with a help text that nobody reads
    assert process.wait(timeout=120) in ((0, 141) if "--help" in words else (141,)) and error == b""


def test_a_broken_pipe_inside_is_a_failure_like_any_other(command, capsys):
    command(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert cli.main(["try"]) == 2
    assert capsys.readouterr().err == "vita: error: [Errno 32] Broken pipe\n"


def test_without_the_environment_one_line_says_how_to_get_it(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: mine\n")
    root = Path(__file__).resolve().parents[3]
    for words in (["train", str(tmp_path / "recipe.yaml")], ["doctor", "--parity"], ["data", "check", "x.yaml"]):
        # -S: without the packages of the environment
        done = subprocess.run(
            [sys.executable, "-S", "-E", "-m", "mindspeed_vita.cli.main", *words], cwd=root, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "is not installed for" in done.stderr and "source .venv/bin/activate" in done.stderr


def test_overrides_may_stand_after_options(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: mine\n")
    assert cli.main(["train", "--print-recipe", str(path), "--engine", "builtin", "train.lr=3e-4"]) == 0
    assert "lr: 0.0003" in capsys.readouterr().out


def test_a_misspelt_command_gets_a_hint(capsys):
    assert cli.main(["generat"]) == 2
    assert "did you mean vita generate? expected one of" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["train"], ["check"], ["data", "stats"]])
def test_a_missing_recipe_is_all_that_is_missing(words, capsys):
    with pytest.raises(SystemExit):
        cli.main(words)
    assert capsys.readouterr().err.endswith(f"vita {' '.join(words)}: error: the following arguments are required: recipe\n")


def test_warnings_that_nobody_can_act_on_stay_away(tmp_path):
    code = "import mindspeed_vita.cli.main as cli; cli.main(['verify', 'a', 'b']); import megatron.core.optimizer"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stderr == "vita: error: a: no such folder; expected the folder of a checkpoint\n", "megatron.core warns on import"
