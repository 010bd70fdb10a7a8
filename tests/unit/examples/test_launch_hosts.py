"""examples/launch/hosts.py: several nodes by ssh. Here a program that runs the command on this machine stands for ssh."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HOSTS = ROOT / "examples" / "launch" / "hosts.py"


@pytest.fixture
def start(tmp_path):
    """Starts hosts.py on two "hosts" with a stage script of the given text."""
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/bash\nshift\nexec setsid --wait bash -c "$1"\n')
    ssh.chmod(0o755)
    (tmp_path / "hosts.txt").write_text("alpha slots=4  # node 0\n\nbeta slots=4\n")
    running = []

    def begin(text: str, *options: str, arguments: tuple[str, ...] = (), **variables: str) -> subprocess.Popen[str]:
        (tmp_path / "stage.sh").write_text(text)
        words = [str(tmp_path / "hosts.txt"), *options, "--ssh", str(ssh), "--logs", str(tmp_path / "logs"), str(tmp_path / "stage.sh")]
        environment = {**os.environ, **variables}
        running.append(
            subprocess.Popen(
                [sys.executable, str(HOSTS), *words, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
            )
        )
        return running[-1]

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_every_node_gets_its_number_the_address_of_node_0_and_the_variables_of_the_shell(start, tmp_path):
    said = 'echo "$NODE_RANK/$NNODES at $MASTER_ADDR with $NPROC_PER_NODE, $OUTPUT_ROOT, $HCCL_SOCKET_IFNAME: $*"'
    begun = start(said, arguments=("train.steps=7", "name=two words"), OUTPUT_ROOT="/a b", HCCL_SOCKET_IFNAME="eth0")
    out, err = begun.communicate(timeout=60)
    assert begun.returncode == 0, err
    lines = [f"{node}/2 at alpha with 4, /a b, eth0: train.steps=7 name=two words" for node in range(2)]
    assert sorted(out.splitlines()) == [f"[{node}] {line}" for node, line in enumerate(lines)]
    assert [(tmp_path / "logs" / f"node{node}.log").read_text() for node in range(2)] == [f"{line}\n" for line in lines]


def test_the_first_node_that_fails_ends_the_others_and_gives_the_exit_status(start, tmp_path):
    script = """
        trap 'echo saved; kill $!; exit 1' TERM
        if [ "$NODE_RANK" = 1 ]; then sleep 0.5; exit 7; fi
        sleep 600 & wait
    """
    begun = start(script)
    out, err = begun.communicate(timeout=60)
    assert begun.returncode == 7, err
    assert "[0] saved" in out, "the other node may save"
    assert f"node 1 (beta) failed first, with status 7; its log is {tmp_path}/logs/node1.log; no restart is left" in err


def test_a_failed_run_is_started_again_on_all_nodes(start, tmp_path):
    script = f"""
        trap 'exit 1' TERM
        echo begun >>{tmp_path}/begun$NODE_RANK
        [ "$NODE_RANK" = 0 ] || [ "$(wc -l <{tmp_path}/begun1)" -ge 3 ] || exit 9
        while [ "$(wc -l <{tmp_path}/begun1 2>/dev/null || echo 0)" -lt 3 ]; do sleep 0.1; done
    """
    begun = start(script, "--restarts", "5")
    _, err = begun.communicate(timeout=60)
    assert begun.returncode == 0 and err.count("starting again") == 2, err
    assert [(tmp_path / f"begun{node}").read_text() for node in range(2)] == ["begun\n" * 3] * 2


def test_an_error_for_people_is_not_tried_again(start, tmp_path):
    begun = start(f"echo begun >>{tmp_path}/begun$NODE_RANK; exit 2", "--restarts", "5")
    _, err = begun.communicate(timeout=60)
    assert begun.returncode == 2 and "its message says how to mend it, so a restart would fail again" in err
    assert all(path.read_text() == "begun\n" for path in tmp_path.glob("begun*"))


@pytest.mark.parametrize(
    ("number", "saves"), [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True), (signal.SIGUSR1, True)]
)
def test_a_signal_reaches_every_node_and_no_restart_follows(start, tmp_path, number, saves):
    script = f"trap 'echo saved; kill $!; exit {75 if saves else 1}' TERM; touch {tmp_path}/there$NODE_RANK; sleep 600 & wait"
    begun = start(script, "--restarts", "5")
    until = time.monotonic() + 60
    while not all((tmp_path / f"there{node}").exists() for node in range(2)):
        assert time.monotonic() < until
        time.sleep(0.05)
    begun.send_signal(number)
    out, err = begun.communicate(timeout=60)
    assert begun.returncode == (75 if saves else 128 + number) and sorted(out.splitlines()) == ["[0] saved", "[1] saved"], err
    assert "starting again" not in err


def test_a_node_that_does_not_end_is_killed_after_the_grace(start, tmp_path):
    script = f"""
        [ "$NODE_RANK" = 0 ] || {{ while [ ! -e {tmp_path}/there ]; do sleep 0.1; done; exit 3; }}
        trap '' TERM
        echo $$ >{tmp_path}/process; touch {tmp_path}/there
        while true; do sleep 0.1; done
    """
    begun = start(script, "--grace", "0.5")
    begun.communicate(timeout=60)
    assert begun.returncode == 3
    state = Path("/proc", (tmp_path / "process").read_text().strip(), "stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "names no host; expected one a line, node 0 first"),
        ("# all are gone\n", "names no host"),
        ("alpha\nalpha\n", "line 2: alpha stands there before"),
        ("alpha 8\n", 'line 1: "alpha 8"; expected a host, and after it nothing or slots=N'),
        ("alpha\n\nbeta slots=0\n", "line 3: "),
        ("-oProxyCommand=touch\n", "line 1: "),
        ("slots=8\n", "line 1: "),
    ],
)
def test_a_line_that_is_no_host_is_refused_by_its_number(tmp_path, text, message):
    (tmp_path / "hosts.txt").write_text(text)
    done = subprocess.run([sys.executable, str(HOSTS), str(tmp_path / "hosts.txt"), "stage.sh"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith(f"hosts.py: {tmp_path}/hosts.txt") and message in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_dry_run_prints_a_line_for_each_host(tmp_path):
    (tmp_path / "hosts.txt").write_text("alpha\nbeta\n")
    (tmp_path / "stage.sh").touch()
    command, variables = [sys.executable, str(HOSTS), "hosts.txt", "--dry-run", "stage.sh", "train.steps=7"], {"MASTER_ADDR": "not mine"}
    environment = {"PATH": os.environ["PATH"], **variables}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 2 and all("MASTER_ADDR=alpha" in line and "train.steps=7" in line for line in lines)
    assert "ssh -o BatchMode=yes" in lines[1] and " beta " in lines[1] and "NODE_RANK=1" in lines[1]


def test_every_variable_that_the_stage_scripts_read_is_passed_on(monkeypatch):
    monkeypatch.syspath_prepend(str(HOSTS.parent))
    import hosts

    text = (ROOT / "examples" / "launch.sh").read_text()
    read = set(re.findall(r"\$\{([A-Z][A-Z0-9_]+):?-", text)) | set(re.findall(r"^ {4}([A-Z][A-Z0-9_]+)=", text, flags=re.MULTILINE))
    own = {"NNODES", "NODE_RANK", "MASTER_ADDR", "PYTHONPATH"}  # each host has its own
    assert {name for name in read if not hosts.PASSED_ON.fullmatch(name)} <= own
    assert len(read) > 20


@pytest.mark.parametrize(
    "words, message",
    [
        (["none.txt", "stage.sh"], "the file of hosts none.txt cannot be read (No such file or directory); expected one host a line"),
        (["hosts.txt", "stage9.sh"], "stage9.sh: no such file; give a stage script"),
        (["hosts.txt", "--ssh", "nossh -p 1", "stage.sh"], "--ssh nossh -p 1: no such program"),
    ],
)
def test_what_would_fail_on_every_host_is_one_line(tmp_path, words, message):
    (tmp_path / "hosts.txt").write_text("alpha\n")
    (tmp_path / "stage.sh").touch()
    done = subprocess.run([sys.executable, str(HOSTS), *words], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
