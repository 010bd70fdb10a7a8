"""What scripts/soak_server.sh runs: a server in a process of its own under a mix of clients, and a look at what it keeps."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

from tests.tiny_checkpoint import make_tokenizer, random_weights, tiny_recipe
from tests.unit.serving.conftest import picture, shown, until
from tests.unit.serving.load import Load

CLIENTS = 32
GROWTH = 0.05
"""Memory after the warm-up may grow by this share."""


def main(seconds: float) -> int:
    """Prints what was found; the exit status says whether all is well."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint, log = _checkpoint(folder), folder / "log"
        command = [sys.executable, "-m", "mindspeed_vita.cli.main", "serve", str(checkpoint), "--port", "0"]
        command += ["--cache-memory", "64MB", "--max-body", "1MB"]
        with open(log, "w") as file:
            server = subprocess.Popen(command, stderr=file, env={**os.environ, "TMPDIR": name})
        try:
            problems = _soak(server, log, seconds)
        finally:
            server.kill()
            server.wait()
        left = [path.name for path in folder.glob("vita-serve-*")]
    problems += [f"left behind: {left}"] if left else []
    for problem in problems[:20]:
        print(problem)
    print("FAIL: the soak of the server" if problems else f"PASS: the soak of the server, {seconds:g} s")
    return 1 if problems else 0


def _checkpoint(folder: Path) -> Path:
    from mindspeed_vita.checkpoint.native import checkpoint as native

    make_tokenizer(folder / "tokenizer")
    native.save_full_weights(folder / "run", random_weights(seed=6), tiny_recipe(tokenizer=str(folder / "tokenizer")))
    return folder / "run"


def _soak(server: subprocess.Popen[bytes], log: Path, seconds: float) -> list[str]:
    until(lambda: server.poll() is not None or "serving run at" in log.read_text(), 300)
    found = re.search(r"serving run at (http://\S+)", log.read_text())
    assert found, log.read_text()
    url = found[1]
    texts = [[{"role": "user", "content": text}] for text in ("How many?", "A photo of a cat on a table. " * 8)]
    asked = [*texts, shown("What is it?", picture(1)), shown("Compare.", picture(1), picture(2, (90, 30)))]
    load = Load(url, [{"messages": messages, "temperature": 0, "max_tokens": 6 + 5 * place} for place, messages in enumerate(asked)])
    load.run(CLIENTS, seconds / 3)
    until(lambda: _running(url) == 0)
    before = _state(server.pid)
    load.run(CLIENTS, seconds * 2 / 3, seed=1)
    until(lambda: _running(url) == 0)
    time.sleep(2)
    after = _state(server.pid)
    print("requests:", dict(load.counts))
    for name in before:
        print(f"{name}: {before[name]} after the warm-up, {after[name]} at the end")
    problems = list(load.problems)
    if after["memory, KiB"] > before["memory, KiB"] * (1 + GROWTH):
        problems.append("memory grew")
    problems += [f"{name} grew" for name in ("files", "processes") if after[name] > before[name]]
    if _cache(url):
        problems.append("blocks are in use although nothing runs")
    server.send_signal(signal.SIGTERM)
    if server.wait(60):
        problems.append(f"exit status {server.returncode}: {log.read_text()[-2000:]}")
    return problems


def _state(pid: int) -> dict[str, int]:
    status = Path(f"/proc/{pid}/status").read_text()
    children = [child for tasks in Path(f"/proc/{pid}/task").glob("*/children") for child in tasks.read_text().split()]  # of every thread
    memory = int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]
    return {"memory, KiB": memory, "files": len(os.listdir(f"/proc/{pid}/fd")), "processes": len(children)}


def _metric(url: str, name: str) -> float:
    with urlopen(f"{url}/metrics", timeout=60) as answer:
        return float(re.search(rf"^{name} (\S+)$", answer.read().decode(), re.MULTILINE)[1])  # type: ignore[index]


def _running(url: str) -> float:
    return _metric(url, "vita_requests")


def _cache(url: str) -> float:
    return _metric(url, "vita_cache_used_share")


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
