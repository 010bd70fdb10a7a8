"""CPU seconds from the start of `vita train` to its first step, next to those of `import torch, megatron.core` alone, in turns.

    OMP_NUM_THREADS=1 python scripts/bench/start.py            # makes a data set of the quickstart's kind first (--smoke size)

The run ends after its first step with a checkpoint, so the time of the save is in it as well. The index of the data is there before.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

with packages_needed():
    import torch  # noqa: F401 - what is measured needs it

ROOT = Path(__file__).resolve().parents[2]
IMPORTS = ["-c", "import torch, megatron.core"]


def cpu_seconds(command: list[str], environment: dict[str, str]) -> float:
    """User and system time of a command and its children. One that fails ends the measurement."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Prints a row for each pair, and the smallest difference: other work on the machine only adds to it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        environment = {**os.environ, "VITA_OUT": folder, "DEVICE": "cpu", "HF_HUB_OFFLINE": "1"}
        data = ["examples/tiny/make_data.py", "--out", f"{folder}/data", "--size", "smoke"]
        train = ["-m", "mindspeed_vita.cli.main", "train", "examples/tiny/stage2.yaml", "train.steps=1", "checkpoint.init_from="]
        train += ["eval.mixture="]
        for command in (data, [*train, f"checkpoint.directory={folder}/index"]):
            cpu_seconds(command, environment)
        differences = []
        for number in range(arguments.pairs):
            alone = cpu_seconds(IMPORTS, environment)
            run = cpu_seconds([*train, f"checkpoint.directory={folder}/{number}"], environment)
            differences.append(run - alone)
            print(f"| {alone:.2f} | {run:.2f} | {run - alone:.2f} |", flush=True)
        print(f"smallest difference: {min(differences):.2f} CPU s")


if __name__ == "__main__":
    main()
