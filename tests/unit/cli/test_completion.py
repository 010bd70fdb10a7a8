"""`vita completion`: bash completes commands, actions, options and files with the script it prints."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mindspeed_vita.cli import completion
from mindspeed_vita.cli.completion import SHELLS
from mindspeed_vita.cli.main import COMMANDS, main

# asks bash's completion function for the words that may follow a line
_ASK = """
COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()
_shtab_vita 2>/dev/null; printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script() -> str:
    pytest.importorskip("shtab", reason="the package shtab is not installed")
    command = [sys.executable, "-m", "mindspeed_vita.cli.main", "completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "line, words",
    [
        ('vita ""', set(COMMANDS)),
        ("vita tr", {"train"}),
        ('vita data ""', {"import", "check", "skipped", "stats", "show", "index", "plan"}),
        ("vita data check --h", {"--help", "--headers"}),
        ("vita data show --p", {"--pack"}),
        ("vita generate --im", {"--image"}),
        ("vita train rec", {"recipe.yaml"}),
        ("vita convert --to ''", {"hf", "internvl", "native", "peft", "mindspeed-llm", "megatron"}),
        ("vita convert --output fo", {"folder"}),
    ],
)
def test_bash_completes(script, tmp_path, line, words):
    (tmp_path / "recipe.yaml").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "foreign.txt").touch()
    done = subprocess.run(["bash", "-c", script + _ASK.format(line=line)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert set(done.stdout.split()) == words, done.stderr


def test_without_shtab_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install -e '.[completion]'" in capsys.readouterr().err


@pytest.mark.parametrize("shell", SHELLS)
def test_the_help_says_how_every_shell_takes_it(capsys, shell):
    with pytest.raises(SystemExit):
        main(["completion", "--help"])
    assert f"vita completion {shell}" in capsys.readouterr().out
    assert shell in str(completion.__doc__)
