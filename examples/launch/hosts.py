"""Starts a stage script on every host of a list by ssh, and again after a failure.

    python examples/launch/hosts.py hosts.txt examples/long_vita_14b/stage3.sh [train.steps=100 ...]

hosts.txt has one host a line, node 0 first: an address that the other hosts reach too. Where the run may not use all devices of a host,
"slots=8" follows. What ssh needs (user, port, key) belongs into ~/.ssh/config. The hosts see this checkout under the same path.

Each line that a node prints is shown with the node's number, and goes to a log of the node. The first node that fails ends the others, and
its exit status is that of this command. With --restarts the run is started again, and goes on from its newest checkpoint.
Ctrl-C and SIGTERM reach every node, which saves and ends.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Optional

ROOT = Path(__file__).resolve().parents[2]
PASSED_ON = re.compile(
    "DATA_ROOT|TOKENIZER|BASE_WEIGHTS|INIT_FROM|OUTPUT_ROOT|MIXTURE|DEVICE|ENGINE|PYTHON|LOG_DIR|MASTER_PORT|NPROC_PER_NODE|DRY_RUN|OMP_NUM_THREADS|DEEPSPEED|FSDP"
    "|(WANDB|SWANLAB|VITA|HCCL|NCCL|GLOO|ASCEND|ACL|ACLNN|CUDA|TORCH|PYTORCH|NPU)_.*|TASK_QUEUE_ENABLE|CPU_AFFINITY_CONF|COMBINED_ENABLE|STREAMS_PER_DEVICE"
    "|MULTI_STREAM_MEMORY_REUSE"
)
"""Variables of this shell that the nodes get too."""
_CONNECTION_LOST = 255
"""Exit status of ssh; what it started may go on."""
_FOR_PEOPLE, _SAVED = 2, 75
"""Exit statuses of a run: its message says how to mend it; it was told to stop, and saved (docs/guides/operations.md)."""
_SSH = "ssh -o BatchMode=yes -o ServerAliveInterval=30"
_STARTED = "vita launch: process "
"""Before the number that a signal is sent to, in a node's first line."""


@dataclass(frozen=True)
class Host:
    """A line of the file."""

    name: str
    slots: Optional[int]
    """Devices that the run may use; None: all."""


def read_hosts(path: Path) -> list[Host]:
    """The hosts of a file, node 0 first.

    Raises:
        ValueError: the file cannot be read, a line is none of a host, a host stands there twice, or there is no host. It names the line.
    """
    hosts: list[Host] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "no text in UTF-8"
        raise ValueError(f"the file of hosts {path} cannot be read ({said}); expected one host a line, node 0 first") from error
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        found = re.fullmatch(r"slots=([1-9][0-9]*)", words[1]) if len(words) == 2 else None
        if words[0].startswith("-") or "=" in words[0] or (len(words) > 1 and not found):
            raise ValueError(f'{path}, line {number}: "{line.strip()}"; expected a host, and after it nothing or slots=N')
        if words[0] in {host.name for host in hosts}:
            raise ValueError(f"{path}, line {number}: {words[0]} stands there before; each host has one line")
        hosts.append(Host(words[0], int(found[1]) if found else None))
    if not hosts:
        raise ValueError(f"{path} names no host; expected one a line, node 0 first")
    return hosts


def remote_command(hosts: Sequence[Host], node: int, command: Sequence[str], variables: Mapping[str, str]) -> str:
    """The shell line that one node runs. It prints its process first, which becomes torchrun.

    Args:
        hosts: all of them.
        node: place of this one.
        command: the stage script and its arguments.
        variables: environment that every node gets.
    """
    own = {**variables, "NNODES": str(len(hosts)), "NODE_RANK": str(node)}
    if len(hosts) > 1:
        own.setdefault("MASTER_ADDR", hosts[0].name)
    if hosts[node].slots is not None:
        own["NPROC_PER_NODE"] = str(hosts[node].slots)
    exported = " ".join(f"{name}={shlex.quote(value)}" for name, value in sorted(own.items()))
    return f'cd {shlex.quote(str(Path.cwd()))} && echo "{_STARTED}$$" && exec env {exported} bash {shlex.join(command)}'


@dataclass
class Node:
    """One host's part of a run."""

    number: int
    host: Host
    ssh: Sequence[str]
    process: subprocess.Popen[str]
    _there: Optional[int] = None
    """Its process on the host."""

    def follow(self, log: IO[str]) -> None:
        """Shows and keeps what the node prints, until it ends."""
        assert self.process.stdout is not None
        with log:
            for line in self.process.stdout:
                if self._there is None and line.startswith(_STARTED):
                    self._there = int(line.removeprefix(_STARTED))
                    continue
                log.write(line)
                log.flush()
                sys.stdout.write(f"[{self.number}] {line}")
                sys.stdout.flush()
        self.process.wait()

    def end(self, *, kill: bool = False) -> None:
        """Asks the node's torchrun to end, or kills it with its ranks. Where the node has not said which process that is, ssh ends."""
        if self.process.poll() not in (None, _CONNECTION_LOST):
            return
        if self._there is not None:
            words = f"pkill -KILL -P {self._there}; kill -KILL {self._there}" if kill else f"kill -TERM {self._there}"
            subprocess.run([*self.ssh, self.host.name, words], stdin=subprocess.DEVNULL, check=False, capture_output=True)
        if kill or self._there is None:
            self.process.terminate()


class Stopped(Exception):
    """A signal asks the command to end."""

    saved = False
    """Whether every node ended its step and saved."""

    def __init__(self, number: int) -> None:
        self.number = number


@dataclass(frozen=True)
class Launch:
    """What all attempts have in common."""

    hosts: Sequence[Host]
    command: Sequence[str]
    ssh: Sequence[str]
    logs: Path
    grace: float

    def run(self) -> tuple[int, str]:
        """Starts the run on all hosts and waits for it.

        Returns:
            The exit status, 0 where all nodes ended well; else that of the first node that failed. And a sentence about that node.

        Raises:
            Stopped: by a signal; all nodes have ended.
        """
        variables = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
        self.logs.mkdir(parents=True, exist_ok=True)
        nodes, threads = [], []
        try:
            for number, host in enumerate(self.hosts):
                line = remote_command(self.hosts, number, self.command, variables)
                # a session of its own: Ctrl-C is passed on by us, once
                process = subprocess.Popen(
                    [*self.ssh, host.name, line],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    start_new_session=True,
                )
                nodes.append(Node(number, host, self.ssh, process))
                log = (self.logs / f"node{number}.log").open("a", encoding="utf-8")
                threads.append(threading.Thread(target=nodes[-1].follow, args=(log,), daemon=True))
                threads[-1].start()
            failed: list[Node] = []
            while not failed and any(node.process.poll() is None for node in nodes):
                time.sleep(0.1)
                failed = [node for node in nodes if node.process.poll()]
            failed = failed or [node for node in nodes if node.process.poll()]
            if failed:
                self._end(nodes, threads)
        except Stopped as stop:
            print(f"{signal.Signals(stop.number).name}: every node saves and ends", file=sys.stderr)
            self._end(nodes, threads)
            stop.saved = all(node.process.poll() in (0, _SAVED) for node in nodes)
            raise
        if not failed:
            return 0, ""
        first, status = failed[0], failed[0].process.returncode
        log = self.logs / f"node{first.number}.log"
        about = f"node {first.number} ({first.host.name}) failed first, with status {status}; its log is {log}"
        return (status if status > 0 else 128 - status), about

    def _end(self, nodes: Sequence[Node], threads: Sequence[threading.Thread]) -> None:
        """Asks the nodes to end, and after a while makes them."""
        for node in nodes:
            node.end()
        until = time.monotonic() + self.grace
        while time.monotonic() < until and any(node.process.poll() is None for node in nodes):
            time.sleep(0.1)
        for node in nodes:
            node.end(kill=True)
        for thread in threads:
            thread.join(10)


def _check_programs(ssh: Sequence[str], script: str, *, dry_run: bool) -> None:
    """Refuses what would fail on every host. A dry run needs no ssh.

    Raises:
        ValueError: there is no such script here, whose checkout the hosts share, or no such ssh.
    """
    if not Path(script).is_file():
        raise ValueError(f"{script}: no such file; give a stage script as seen from {Path.cwd()}, such as examples/long_vita_14b/stage3.sh")
    if not dry_run and (not ssh or shutil.which(ssh[0]) is None):
        raise ValueError(f"--ssh {shlex.join(ssh)}: no such program; install ssh, or name what reaches a host")


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hosts", type=Path, help="file of hosts")
    parser.add_argument("script", help="stage script, e.g. examples/long_vita_14b/stage3.sh")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on to the script")
    parser.add_argument("--restarts", type=int, default=0, help="times to start the run again after a failure (default 0)")
    parser.add_argument(
        "--logs", type=Path, help="folder for a log of each node (default: LOG_DIR, OUTPUT_ROOT/logs or logs, and launch/ in it)"
    )
    parser.add_argument("--ssh", default=_SSH, help="what reaches a host (default: %(default)s)")
    parser.add_argument("--grace", type=float, default=1800, help="seconds that a node has to save and end (default %(default)g)")
    parser.add_argument("--dry-run", action="store_true", help="print the command of each host, and start nothing")
    arguments = parser.parse_args()
    ssh, command = shlex.split(arguments.ssh), [arguments.script, *arguments.arguments]
    try:
        hosts = read_hosts(arguments.hosts)
        _check_programs(ssh, arguments.script, dry_run=arguments.dry_run)
    except ValueError as error:
        print(f"hosts.py: {error}", file=sys.stderr)
        return 2
    if arguments.dry_run:
        variables = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
        for node, host in enumerate(hosts):
            print(shlex.join([*ssh, host.name, remote_command(hosts, node, command, variables)]))
        return 0
    output = os.environ.get("OUTPUT_ROOT")
    logs = arguments.logs or Path(os.environ.get("LOG_DIR") or (f"{output}/logs" if output else "logs")) / "launch"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _stop)
    launch = Launch(hosts, command, ssh, logs, arguments.grace)
    for attempt in range(arguments.restarts + 1):
        try:
            status, about = launch.run()
        except Stopped as stop:
            return _SAVED if stop.saved else 128 + stop.number
        if status == 0:
            return 0
        again = "starting again" if attempt < arguments.restarts else "no restart is left"
        if status == _FOR_PEOPLE:
            again = "its message says how to mend it, so a restart would fail again"
        print(f"hosts.py: {about}; {again}", file=sys.stderr)
        if status == _FOR_PEOPLE:
            break
    return status


def _stop(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Stopped(number)


if __name__ == "__main__":
    sys.exit(main())
