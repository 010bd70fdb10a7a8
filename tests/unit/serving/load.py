"""Many clients at once on one server: valid, slow, aborted, oversized and malformed ones. Used by a test and by scripts/soak_server.sh."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

PATH = "/v1/chat/completions"
_BROKEN = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
_HEAD = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"


@dataclass
class Load:
    """A mix of clients.

    Args:
        url: the server's, with max_body at most 1 MB.
        valid: bodies that have an answer; greedy.
    """

    url: str
    valid: list[dict[str, Any]]
    alone: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, clients: int, seconds: float, seed: int = 0) -> None:
        """Asks each valid body alone, then lets all clients ask until the time is over."""
        self.alone = self.alone or [self._answer(body) for body in self.valid]
        end = time.monotonic() + seconds
        with ThreadPoolExecutor(clients) as pool:
            for each in [pool.submit(self._client, random.Random(seed * 1000 + number), end) for number in range(clients)]:
                each.result()

    def _client(self, draw: random.Random, end: float) -> None:
        kinds = [self._valid, self._valid, self._streamed, self._slow, self._aborted, self._oversized, self._malformed]
        while time.monotonic() < end:
            kind = draw.choice(kinds)
            try:
                problem = kind(draw)
            except (OSError, ValueError) as error:
                problem = repr(error)
            with self._lock:
                self.counts[kind.__name__.strip("_")] += 1
                if problem:
                    self.problems.append(f"{kind.__name__}: {problem}")

    def _answer(self, body: dict[str, Any]) -> str:
        status, answer = self._post(json.dumps(body).encode())
        assert status == 200, answer
        return json.loads(answer)["choices"][0]["message"]["content"]

    def _valid(self, draw: random.Random) -> str:
        place = draw.randrange(len(self.valid))
        return "" if self._answer(self.valid[place]) == self.alone[place] else f"request {place} is answered in another way"

    def _streamed(self, draw: random.Random) -> str:
        place = draw.randrange(len(self.valid))
        status, answer = self._post(json.dumps({**self.valid[place], "stream": True}).encode())
        events = [event.removeprefix("data: ") for event in answer.decode().split("\n\n") if event]
        chunks = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1]]
        fine = status == 200 and events[-1] == "[DONE]" and "".join(chunks) == self.alone[place]
        return "" if fine else f"request {place} is streamed in another way"

    def _slow(self, draw: random.Random) -> str:
        """Sends its body in three parts, and reads its answer in small ones."""
        place = draw.randrange(len(self.valid))
        body = json.dumps(self.valid[place]).encode()
        with self._connection() as connection:
            connection.sendall(f"{_HEAD}Content-Length: {len(body)}\r\n\r\n".encode())
            for part in (body[:10], body[10:-5], body[-5:]):
                time.sleep(0.05)
                connection.sendall(part)
            answer = b""
            while piece := connection.recv(1000):
                answer += piece
        text = json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"]
        return "" if text == self.alone[place] else f"request {place} is answered in another way"

    def _aborted(self, draw: random.Random) -> str:
        body = json.dumps({**self.valid[draw.randrange(len(self.valid))], "max_tokens": 3000, "stream": draw.random() < 0.5}).encode()
        with self._connection() as connection:
            connection.sendall(f"{_HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body[: draw.choice([20, len(body)])])
            time.sleep(draw.random() * 0.2)
            if draw.random() < 0.5:  # a reset in place of an orderly end
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return ""

    def _oversized(self, draw: random.Random) -> str:
        with self._connection() as connection:
            connection.sendall(f"{_HEAD}Content-Length: 2000000\r\n\r\n".encode())
            return _expect(413, int(connection.recv(1000).split()[1]))

    def _malformed(self, draw: random.Random) -> str:
        wrong = [
            b"{",
            b"[]",
            b"{}",
            b'{"messages": "x"}',
            json.dumps({**self.valid[0], "temperature": 9}).encode(),
            json.dumps({**self.valid[0], "unknown": 1}).encode(),
            json.dumps({"messages": [{"role": "user", "content": _BROKEN}]}).encode(),
            json.dumps({**self.valid[0], "max_tokens": 10**6}).encode(),
        ]
        return _expect(400, self._post(draw.choice(wrong))[0])

    def _post(self, body: bytes) -> tuple[int, bytes]:
        try:
            with urlopen(Request(self.url + PATH, body, {"Content-Type": "application/json"}), timeout=300) as answer:
                return answer.status, answer.read()
        except HTTPError as error:
            return error.code, error.read()

    def _connection(self) -> socket.socket:
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=300)


def _expect(wanted: int, found: int) -> str:
    return "" if found == wanted else f"status {found}, expected {wanted}"
