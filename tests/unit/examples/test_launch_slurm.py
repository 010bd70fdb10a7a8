"""examples/launch/slurm.sh: a stage as a Slurm job. Here small programs stand for srun and scontrol; no Slurm was at hand."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "examples" / "launch" / "slurm.sh"
SRUN = """#!/bin/bash
# two tasks; the first that fails ends the other, as --kill-on-bad-exit does
[ "$1" = --kill-on-bad-exit=1 ] && [ "$2" = --wait=1800 ] || exit 99
shift 2
for node in 0 1; do SLURM_NODEID=$node "$@" & tasks[node]=$!; done
[ -z "${SIGNAL:-}" ] || { sleep 1; kill -TERM "${tasks[@]}"; }
worst=0
for one in 1 2; do
    wait -n 2>/dev/null; status=$?
    [ $status -le $worst ] || worst=$status
    [ $status -eq 0 ] || kill -TERM "${tasks[@]}" 2>/dev/null
done
exit $worst
"""


@pytest.fixture
def batch(tmp_path):
    """Runs the job on a stage script of the given text."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "srun").write_text(SRUN)
    (programs / "scontrol").write_text('#!/bin/bash\n[ "$1" = show ] && printf "n07\\nn08\\n" || echo "$*" >>"$CALLS"\n')
    for program in programs.iterdir():
        program.chmod(0o755)

    def run(text: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "stage.sh").write_text(text)
        slurm = {"SLURM_JOB_ID": "70041", "SLURM_JOB_NODELIST": "n[07-08]", "SLURM_JOB_NUM_NODES": "2", "SLURM_SUBMIT_DIR": str(tmp_path)}
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, **slurm, "PATH": path, "CALLS": str(tmp_path / "calls"), **variables}
        command = ["bash", str(SCRIPT), *(arguments or ("stage.sh",))]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    return run


def calls(tmp_path: Path) -> str:
    """What scontrol was asked beside names of hosts."""
    path = tmp_path / "calls"
    return path.read_text() if path.exists() else ""


def test_every_task_is_a_node_with_its_number_and_the_address_of_the_first(batch, tmp_path):
    done = batch('[ "${DRY_RUN:-0}" = 1 ] || echo "$NODE_RANK/$NNODES $MASTER_ADDR:$MASTER_PORT $*"', "stage.sh", "train.steps=7")
    assert done.returncode == 0 and done.stderr == ""
    assert sorted(done.stdout.splitlines()) == [f"{node}/2 n07:30041 train.steps=7" for node in range(2)]
    assert calls(tmp_path) == "" and not list(tmp_path.glob(".slurm-*"))


def test_the_first_node_that_fails_gives_the_exit_status_and_the_job_goes_back_to_the_queue(batch, tmp_path):
    script = """
        [ "${DRY_RUN:-0}" = 1 ] && exit 0
        trap 'kill $!; exit 9' TERM
        [ "$NODE_RANK" = 1 ] && { sleep 0.3; exit 3; }
        sleep 600 & wait
    """
    done = batch(script, RESTARTS="2", SLURM_RESTART_COUNT="1")
    assert done.returncode == 3, done.stderr
    assert "slurm.sh: node 1 (" in done.stderr and "failed first, with status 3" in done.stderr
    assert "back to the queue, start 3 of at most 3" in done.stderr and calls(tmp_path) == "requeue 70041\n"
    again = batch(script, RESTARTS="2", SLURM_RESTART_COUNT="2")
    assert again.returncode == 3 and "queue" not in again.stderr and calls(tmp_path) == "requeue 70041\n"


def test_an_error_for_people_does_not_go_back_to_the_queue(batch, tmp_path):
    done = batch('[ "${DRY_RUN:-0}" = 1 ] && exit 0\nexit 2\n')
    assert done.returncode == 2 and "the log says how to mend it" in done.stderr and calls(tmp_path) == ""


def test_the_time_limit_lets_the_run_save_and_the_job_continues(batch, tmp_path):
    script = '[ "${DRY_RUN:-0}" = 1 ] && exit 0\ntrap "sleep 0.5; echo saved $NODE_RANK; kill $!; exit 1" TERM\nsleep 600 & wait\n'
    done = batch(script.replace("$!", "\\$!"), SIGNAL="1")
    assert sorted(done.stdout.splitlines()) == ["saved 0", "saved 1"]
    assert done.returncode == 1 and calls(tmp_path) == "requeue 70041\n"


def test_a_check_that_fails_starts_nothing(batch, tmp_path):
    done = batch('[ "${DRY_RUN:-0}" = 1 ] && { echo "train.lr: -1" >&2; exit 2; }; echo trained')
    assert done.returncode == 2 and done.stdout == "" and calls(tmp_path) == ""
    assert done.stderr == "train.lr: -1\nslurm.sh: the check of stage.sh failed, see above; nothing was started\n"


@pytest.mark.parametrize(
    "arguments, variables, message",
    [
        (("nowhere.sh",), {}, "nowhere.sh does not exist; give the stage script as seen from"),
        (("stage.sh",), {"SLURM_JOB_ID": ""}, "this is a Slurm job; start it with sbatch"),
    ],
)
def test_what_cannot_start_is_refused_in_one_line(batch, arguments, variables, message):
    done = batch("exit 0", *arguments, **variables)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
