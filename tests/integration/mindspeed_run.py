"""Runs of real MindSpeed-LLM on the CPU: one process a rank, and the numbers they printed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping, Sequence

import torch.distributed as dist

from mindspeed_vita.config import Recipe
from mindspeed_vita.integration.mindspeed_llm.arguments import arguments_from_recipe

ROOT = Path(__file__).resolve().parents[2]
EMULATED = Path(__file__).with_name("emulated_npu")
PROJECTS = ("MindSpeed-LLM", "MindSpeed", "Megatron-LM")
NEEDS = ("einops", "sentencepiece", "regex", "pybind11", "ninja", "transformers", "datasets", "peft", "tiktoken", "accelerate", "six")
_LINE = re.compile(r"iteration +(\d+)/.*?learning rate: (\S+).*?lm loss: (\S+).*?grad norm: (\S+)")
_SECONDS = 420
_stores: list[dist.TCPStore] = []
"""Where the ranks of each run meet; a store that nobody holds closes."""


@dataclass(frozen=True)
class Printed:
    """What a run printed, by iteration."""

    status: int
    """Of the first process that failed, or 0."""
    losses: dict[int, float]
    norms: dict[int, float]
    rates: dict[int, float]
    text: str
    """Everything, all ranks after each other."""


@dataclass(frozen=True)
class MindSpeed:
    """Where upstream lies, and where runs are kept."""

    upstream: Path
    folder: Path
    """Plugins lie here too."""
    rows: list[str] = field(default_factory=list)
    """Of the table of results: what, ranks, steps, largest relative difference of a loss."""
    projects: Sequence[str] = PROJECTS
    """Folders in `upstream` that Python imports from."""
    script: Path = ROOT / "pretrain_vita.py"
    """What each rank runs."""

    @property
    def python(self) -> str:
        """The interpreter that MindSpeed-LLM's requirements are installed for."""
        return os.environ.get("VITA_UPSTREAM_PYTHON", sys.executable)

    def environment(self, **more: str) -> dict[str, str]:
        """Of a process that runs MindSpeed-LLM."""
        path = [ROOT, EMULATED, self.folder, *(self.upstream / name for name in self.projects)]
        keep = {name: value for name, value in os.environ.items() if name not in ("DEVICE", "CUDA_VISIBLE_DEVICES")}
        binaries = os.pathsep.join([str(Path(self.python).parent), keep.get("PATH", "")])  # Megatron compiles with what `python3` it finds
        python_path = os.pathsep.join(map(str, path))
        settings = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "ASCEND_HOME_PATH": str(EMULATED), "HF_HUB_OFFLINE": "1"}
        return {**keep, **settings, "PYTHONPATH": python_path, "PATH": binaries, **more}

    def start(self, line: Sequence[str], world: int = 1, name: str = "run") -> list[subprocess.Popen[bytes]]:
        """Starts every rank of the script; each writes to <folder>/<name>.<rank>.log."""
        # as under torchrun: ranks meet at a store that exists before them, so nobody can take its port meanwhile
        _stores.append(dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
        agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_stores[-1].port), "WORLD_SIZE": str(world), **agent}
        processes = []
        for rank in range(world):
            environment = self.environment(**group, RANK=str(rank), LOCAL_RANK=str(rank))
            with open(self.folder / f"{name}.{rank}.log", "wb") as log:
                command = [self.python, str(self.script), *line]
                processes.append(subprocess.Popen(command, env=environment, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT))
        return processes

    def train(self, recipe: Recipe, world: int = 1, name: str = "run", flags: Sequence[str] = ()) -> Printed:
        """Runs a recipe to its end, or until a rank fails; then the others are ended."""
        return self.finish(self.start([*arguments_from_recipe(recipe), *flags], world, name), name)

    def off_by(self, what: str, ranks: int, found: Printed, expected: Mapping[int, float]) -> float:
        """Largest relative difference of a printed loss from the expected one of that step; becomes a row of the table."""
        assert found.status == 0, found.text[-3000:]
        worst = max(abs(loss - expected[step]) / expected[step] for step, loss in found.losses.items())
        self.rows.append(f"| {what} | {ranks} | {len(found.losses)} | {worst:.1e} |")
        return worst

    def finish(self, processes: Sequence[subprocess.Popen[bytes]], name: str) -> Printed:
        """Waits for the ranks of a run."""
        deadline, status = time.monotonic() + _SECONDS, 0
        while any(process.poll() is None for process in processes) and not status and time.monotonic() < deadline:
            status = next((process.returncode for process in processes if process.poll()), 0)
            time.sleep(0.05)
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            status = status or process.wait()
        text = "".join((self.folder / f"{name}.{rank}.log").read_text(errors="replace") for rank in range(len(processes)))
        lines = {int(found[1]): found for found in _LINE.finditer(text)}
        columns = [{step: float(found[group]) for step, found in lines.items()} for group in (3, 4, 2)]
        return Printed(status, *columns, text)
