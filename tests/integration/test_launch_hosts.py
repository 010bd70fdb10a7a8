"""Two nodes started by examples/launch/hosts.py, each a torchrun of its own on this machine: a rank is killed, and the run goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import yaml

from mindspeed_vita.config import recipe_to_dict
from tests.tiny_data import read_metrics, tiny

__all__ = ["tiny"]
ROOT = Path(__file__).resolve().parents[2]


def start(folder: Path, recipe: Path) -> subprocess.Popen[str]:
    """The launcher; a program that runs the command here stands for ssh."""
    (folder / "ssh").write_text('#!/bin/bash\nshift\nexec setsid --wait bash -c "$1"\n')
    (folder / "ssh").chmod(0o755)
    (folder / "hosts.txt").write_text("127.0.0.1 slots=1\nlocalhost slots=1\n")
    (folder / "stage.sh").write_text(f'source {ROOT}/examples/launch.sh\nlaunch {recipe} "$@"\n')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    variables = {"PYTHON": sys.executable, "DEVICE": "cpu", "OMP_NUM_THREADS": "1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(ROOT / "examples" / "launch" / "hosts.py"), str(folder / "hosts.txt"), "--ssh", str(folder / "ssh")]
    options = ["--restarts", "1", "--grace", "20", "--logs", str(folder / "logs"), str(folder / "stage.sh")]
    environment = {**os.environ, **variables}
    return subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def rank_of(recipe: Path, rank: int) -> int:
    """The process of a rank that trains a recipe."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().split("\0")
            variables = (folder / "environ").read_text().split("\0")
        except OSError:
            continue
        if (
            str(recipe) in words
            and "mindspeed_vita.cli.main" in words
            and f"RANK={rank}" in variables
            and "torch.distributed.run" not in words
        ):
            return int(folder.name)
    raise AssertionError("no such rank")


def test_a_rank_of_the_second_node_is_killed_and_the_run_ends_with_the_same_curve(tiny, tmp_path):
    curves = []
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        train = {"steps": 12, "global_batch": 4}
        recipe = tiny.recipe(folder / "run", train=train, checkpoint={"save_every": 2})
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_to_dict(recipe)))
        begun = start(folder, folder / "recipe.yaml")
        try:
            if name == "killed":
                until = time.monotonic() + 240
                while not list((folder / "run").glob("step_*/")):
                    assert time.monotonic() < until and begun.poll() is None, begun.communicate()
                    time.sleep(0.01)
                os.kill(rank_of(folder / "recipe.yaml", 1), signal.SIGKILL)
            out, err = begun.communicate(timeout=300)
        finally:
            begun.kill()
        assert begun.returncode == 0, (out, err)
        assert len(re.findall(r"^hosts.py: node \d .* failed first, with status \d+", err, flags=re.MULTILINE)) == (name == "killed")
        assert "dp2" in out and (folder / "logs" / "node1.log").stat().st_size > 0
        steps = [json.loads(line)["step"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(1, 13))
        curves.append(read_metrics(folder / "run"))
    assert curves[0] == curves[1]
