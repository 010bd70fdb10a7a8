"""A real nginx in front of the server, with the guide's configuration: streams are not held back, and a client that leaves is noticed."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.serving.conftest import Gate, Running, picture, raw, shown, until
from tests.unit.serving.test_app import HI, post

NGINX = shutil.which("nginx") or ("/usr/sbin/nginx" if os.access("/usr/sbin/nginx", os.X_OK) else None)
GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "serving.md"
if NGINX is None and os.environ.get("CI") != "true":
    pytest.skip("nginx is not installed (Debian: apt-get install nginx-light)", allow_module_level=True)

CONFIGURATION = """
{user}
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
    scgi_temp_path {folder}/s;
    server {{
        listen 127.0.0.1:{port};
{location}
    }}
}}
"""


@pytest.fixture(scope="module")
def proxy(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an nginx that passes everything on to the server."""
    assert NGINX is not None, "nginx is not installed; .ci/run installs it"
    found = re.search(r"```nginx\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert found and "http://127.0.0.1:8000;" in found[1]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("nginx")
    user = "user root;" if os.geteuid() == 0 else ""  # else its workers may not write below the test's folder
    location = found[1].replace("http://127.0.0.1:8000", server.url)
    (folder / "nginx.conf").write_text(CONFIGURATION.format(user=user, folder=folder, port=port, location=location))
    process = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")])
    try:
        until(lambda: process.poll() is not None or _listens(port))
        assert process.poll() is None, (folder / "error.log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_the_first_text_comes_while_the_rest_is_not_computed_yet(server: Running, proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = post(server.url, {**HI, "max_tokens": 30})[1]["choices"][0]["message"]["content"]
    body = json.dumps({**HI, "max_tokens": 30, "stream": True}).encode()
    gate = Gate(server, monkeypatch, steps=8)
    head = f"POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    try:
        with raw(proxy, head.encode() + body) as connection:
            answer = b""
            while answer.count(b"data: ") < 3:  # the role and two pieces; waits for good where the proxy holds them back
                answer += (piece := connection.recv(4096))
                assert piece
            assert b"[DONE]" not in answer and not server.idle()
            gate.open.set()
            while piece := connection.recv(4096):
                answer += piece
    finally:
        gate.open.set()
    events = [json.loads(event) for event in re.findall(rb"data: (\{.*\})", answer)]
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == alone and answer.endswith(b"data: [DONE]\n\n")


def test_a_picture_and_an_error_come_through(server: Running, proxy: str) -> None:
    asked = {**HI, "messages": shown("What is it?", picture(3, (300, 200)))}
    assert post(proxy, asked)[1]["choices"] == post(server.url, asked)[1]["choices"]
    status, answer, _ = post(proxy, {**HI, "temperature": 9})
    assert status == 400 and answer["error"]["param"] == "temperature"


def test_a_client_that_leaves_the_proxy_leaves_the_server(server: Running, proxy: str) -> None:
    body = json.dumps({**HI, "max_tokens": 3900, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with raw(proxy, head.encode() + body) as connection:
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
    until(server.idle)
    until(lambda: server.lines[-1]["status"] == 499)
