"""A local server with the interface of S3 (moto's), for tests. Its packages, and s3fs, lie in a folder of their own: VITA_STORES."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

BUCKET = "bucket"


@dataclass(frozen=True)
class S3Server:
    """A server with one bucket."""

    url: str
    packages: str
    """Folder with s3fs."""

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs that uses the server."""
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        path = os.pathsep.join(filter(None, [self.packages, os.environ.get("PYTHONPATH")]))
        return {**keys, "AWS_ENDPOINT_URL": self.url, "PYTHONPATH": path, "no_proxy": "127.0.0.1"}

    def put(self, key: str, content: bytes) -> None:
        """Writes an object."""
        kind = {"Content-Type": "binary/octet-stream"}
        self._ask(urllib.request.Request(f"{self.url}/{BUCKET}/{key}", data=content, headers=kind, method="PUT"))

    def keys(self, prefix: str = "") -> list[str]:
        """Names of objects."""
        listed = self._ask(urllib.request.Request(f"{self.url}/{BUCKET}?list-type=2&prefix={prefix}")).decode()
        return [part.partition("</Key>")[0] for part in listed.split("<Key>")[1:]]

    def make_bucket(self) -> None:
        """Makes the bucket."""
        self._ask(urllib.request.Request(f"{self.url}/{BUCKET}", method="PUT"))

    def _ask(self, request: urllib.request.Request) -> bytes:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return bytes(answer.read())


@contextmanager
def running() -> Iterator[S3Server]:
    """Starts a server; skips the test where its packages are missing."""
    packages = os.environ.get("VITA_STORES", "")
    if not Path(packages, "moto").is_dir() or not Path(packages, "s3fs").is_dir():
        pytest.skip("VITA_STORES is not set to a folder with s3fs and moto; scripts/test.sh makes one")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = S3Server(f"http://127.0.0.1:{port}", packages)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, env={**os.environ, **server.environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                server.make_bucket()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
                time.sleep(0.1)
        yield server
    finally:
        process.kill()
        process.wait()
