"""How the soak starts a run: ranks forked from this process, which has imported everything, or `vita train` under the real launcher.

Both kinds of ranks are processes of their own, which a fault really kills or stops. A forked start saves the imports of torch and megatron.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch.distributed as dist

from tests.fault_plugin import FAULT, PIDS
from tests.train_faults import Fault

ROOT = Path(__file__).resolve().parents[1]
RANKS = 2
LONGEST = 60.0
"""Seconds in which every process of a start must have ended after its fault."""
OUTSIDE = ("kill: any moment", "stop and continue", "stop for ever")
"""Faults that the soak does to a process at a moment."""
_STOPPED = 0.5
"""Seconds that "stop and continue" lasts."""


@dataclass
class Ended:
    """How a start ended."""

    statuses: list[int]
    """Exit status of each rank, or of the launcher; negative: killed by that signal."""
    log: str
    """What all processes printed."""
    problems: list[str] = field(default_factory=list)
    """Processes that did not end."""

    @property
    def well(self) -> bool:
        """The run came to its last step."""
        return not any(self.statuses)


class Forks:
    """Starts whose ranks are forks of this process. It runs Python in one thread: a lock that another holds would stay locked in a fork.

    Args:
        folder: for the log and the list of modules.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def learn(self, words: Sequence[str]) -> Ended:
        """A start without a fault. What its first rank imported, this process imports, too, so that later ranks need not."""
        listed = self._folder / "modules"
        ended = self.start(words, None, 1.0, modules=listed)
        if ended.well:
            for name in json.loads(listed.read_text()):
                importlib.import_module(name)
        gc.collect()
        gc.freeze()  # a collection in a fork would copy every page that it looks at
        return ended

    def start(self, words: Sequence[str], fault: Optional[Fault], seconds: float, modules: Optional[Path] = None) -> Ended:
        """One start.

        Args:
            words: behind `vita`.
            fault: of this start.
            seconds: that a start without a fault takes.
            modules: file for the names of the modules that the first rank imported.
        """
        assert threading.active_count() == 1, "this process has several threads and cannot fork"
        self._count += 1
        port, keeper = _free_port(), 0
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(RANKS)}
        if self._count % 2:  # as under torchrun, whose agent keeps the store; in the other starts the first rank does
            environment["TORCHELASTIC_USE_AGENT_STORE"] = "True"
            keeper = _keep_store(port)
        log = self._folder / "log"
        written = _open_log(log)
        sys.stdout.flush()
        processes: list[int] = []
        for rank in range(RANKS):
            own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = os.fork()
            if not process:
                _be_rank(written, own, fault, words, modules if rank == 0 else None)
            processes.append(process)
        os.close(written)
        ended = self._wait(processes, fault, seconds, log)
        if keeper:
            os.kill(keeper, signal.SIGKILL)
            os.waitpid(keeper, 0)
        return ended

    def _wait(self, processes: list[int], fault: Optional[Fault], seconds: float, log: Path) -> Ended:
        began, moves = time.monotonic(), _Moves(fault, seconds, log)
        statuses: dict[int, int] = {}
        first_end: Optional[float] = None
        problems = []
        while len(statuses) < RANKS:
            now = time.monotonic()
            for process in processes:
                if process not in statuses and (found := os.waitpid(process, os.WNOHANG))[0]:
                    statuses[process] = os.waitstatus_to_exitcode(found[1])
                    first_end = first_end or now
            if fault is not None and processes[fault.rank] not in statuses:
                moves.make(processes[fault.rank], alone=len(statuses) == RANKS - 1)
            late = first_end is not None and now - first_end > LONGEST or now - began > 2 * LONGEST
            if late:
                left = ", ".join(_state(process) for process in processes if process not in statuses)
                ends = f"after {now - began:.0f} s" + (f", {now - first_end:.0f} s after the first end" if first_end else "")
                problems.append(f"a process did not end {ends} ({left}): {fault}; {log.read_text()[-800:]}")
            # before there is a process group only a launcher can know that a process is gone
            if late or (first_end is not None and now - first_end > 1 and "device: " not in log.read_text()):
                for process in {*processes} - {*statuses}:
                    os.kill(process, signal.SIGKILL)
                    statuses[process] = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            time.sleep(0.01)
        return Ended([statuses[process] for process in processes], log.read_text(), problems)


def by_command(folder: Path, words: Sequence[str], fault: Optional[Fault], seconds: float) -> Ended:
    """One start by the command that a user gives: our torchrun, two new processes, and the fault as a plugin of the recipe.

    Args:
        folder: for the log and the ranks' process ids.
        words: behind `vita`.
        fault: of this start.
        seconds: that the ranks take without a fault, once they have begun to import torch.
    """
    log = folder / "log"
    for path in folder.glob(f"{PIDS}.*"):
        path.unlink()
    told = {FAULT: json.dumps(asdict(fault)) if fault is not None else "", "VITA_SOAK_PIDS": str(folder / PIDS)}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "mindspeed_vita.cli.torchrun", "--nnodes", "1", "--nproc_per_node", str(RANKS)]
    command += ["--master_port", str(_free_port()), "-m", "mindspeed_vita.cli.main", *words]
    written = _open_log(log)
    launcher = subprocess.Popen(command, env={**os.environ, **told, "PYTHONPATH": path}, stdout=written, stderr=written, cwd=folder)
    os.close(written)
    began, moves = time.monotonic(), _Moves(fault, seconds, log)
    problems = []
    while launcher.poll() is None:
        now, pids = time.monotonic(), _pids(folder)
        if fault is not None and len(pids) == RANKS and _runs(pids[fault.rank]):
            alone = not any(_runs(pid) for rank, pid in pids.items() if rank != fault.rank)
            moves.make(pids[fault.rank], alone=alone)
        if now - began > 3 * LONGEST:
            problems.append(f"the launcher did not end: {fault}; {log.read_text()[-800:]}")
            launcher.kill()
            launcher.wait()
        time.sleep(0.02)
    for rank, pid in _pids(folder).items():
        if _runs(pid):
            problems.append(f"rank {rank} outlived its launcher: {fault}; {log.read_text()[-800:]}")
            os.kill(pid, signal.SIGKILL)
    return Ended([launcher.returncode], log.read_text(), problems)


class _Moves:
    """What is done to a process from outside, at the moment that the fault names.

    Args:
        fault: of this start.
        seconds: that a start without a fault takes.
        log: of the start. A hang is noticed from the first step on, so a process is not stopped for ever before.
    """

    def __init__(self, fault: Optional[Fault], seconds: float, log: Path) -> None:
        self._fault, self._log = fault, log
        self._waits = fault is not None and fault.kind == "stop for ever"
        self._moment = 0.0 if fault is None else fault.moment * seconds * (0.5 if self._waits else 1.0)
        self._began: Optional[float] = None
        self._acted: Optional[float] = None
        self._over = fault is None or fault.kind not in OUTSIDE

    def make(self, process: int, *, alone: bool) -> None:
        """Does what is due. `alone`: all other ranks have ended."""
        fault, now = self._fault, time.monotonic()
        if self._over or fault is None:
            return
        if self._began is None:
            if self._waits and not re.search(r"step \d+/\d+ loss", self._log.read_text()):
                return
            self._began = now
        if self._acted is None:
            if now - self._began > self._moment:
                self._acted = now
                fault.fired()
                kills = fault.kind.startswith("kill")
                os.kill(process, signal.SIGKILL if kills else signal.SIGSTOP)
                self._over = kills
        elif fault.kind == "stop and continue" and now - self._acted > _STOPPED:
            os.kill(process, signal.SIGCONT)
            self._over = True
        elif fault.kind == "stop for ever" and alone:
            os.kill(process, signal.SIGKILL)  # as a launcher does, sooner or later
            self._over = True


def _be_rank(log: int, environment: dict[str, str], fault: Optional[Fault], words: Sequence[str], modules: Optional[Path]) -> Any:
    """One rank; never returns."""
    try:
        known = {*sys.modules}
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(environment)
        if fault is not None:
            fault.put_in()
        from mindspeed_vita.cli.main import main as vita

        status = vita(list(words))
        if modules is not None:
            modules.write_text(json.dumps([name for name in sys.modules if name not in known and _is_file(name)]))
        os._exit(status)
    except BaseException:  # noqa: BLE001 - a forked copy of this program must not go on
        traceback.print_exc()
    finally:
        os._exit(99)


def _is_file(name: str) -> bool:
    """Whether a module comes from a file of its name, and is no second name of another."""
    spec = sys.modules[name].__spec__
    return spec is not None and spec.name == name and spec.has_location


def _keep_store(port: int) -> int:
    """A process that keeps a store for the ranks, until it is killed; at the latest until no start can last any longer."""
    process = os.fork()
    if not process:
        try:
            signal.alarm(int(10 * LONGEST))
            store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
            signal.pause()
            del store
        finally:
            os._exit(0)
    return process


def _open_log(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND)


def _pids(folder: Path) -> dict[int, int]:
    return {int(path.suffix[1:]): int(text) for path in folder.glob(f"{PIDS}.*") if (text := path.read_text())}


def _state(process: int) -> str:
    """What a process does, as the kernel says it."""
    try:
        folder = Path(f"/proc/{process}")
        letter = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        return f"process {process} is {letter} in {(folder / 'wchan').read_text() or '-'}"
    except OSError as error:
        return f"process {process}: {error}"


def _runs(process: int) -> bool:
    """Whether a process that is not ours to wait for has not ended; a zombie has."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
