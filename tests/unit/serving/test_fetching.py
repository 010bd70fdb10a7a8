"""Fetching media: allowed hosts and public addresses only, checked at every hop, within bytes and seconds. No network is used."""

from __future__ import annotations

import io
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mindspeed_vita.serving.fetching import Fetcher, FetchError, is_public

PUBLIC = "93.184.216.34"


class Net:
    """A name server and servers behind it, as the fetcher is told of them."""

    def __init__(self, answers: dict[str, bytes], addresses: dict[str, list[str]] | None = None, drip: float = 0.0) -> None:
        self.answers, self.addresses, self.drip = answers, addresses or {}, drip
        self.tls: ssl.SSLContext | None = None
        self.looked_up: list[str] = []
        self.connected: list[tuple[str, int]] = []
        self.asked: list[str] = []
        self.cut_off = threading.Event()

    def resolve(self, host: str, port: int) -> list[str]:
        self.looked_up.append(host)
        if self.addresses.get(host) == []:
            raise socket.gaierror("unknown")
        # a second question would get a private address: it must not be asked
        return ["10.0.0.1"] if self.looked_up.count(host) > 1 and host == "rebinding" else self.addresses.get(host, [PUBLIC])

    def connect(self, address: str, port: int, seconds: float) -> socket.socket:
        self.connected.append((address, port))
        ours, theirs = socket.socketpair()
        ours.settimeout(seconds)
        threading.Thread(target=self._serve, args=(theirs,), daemon=True).start()
        return ours

    def _serve(self, connection: socket.socket) -> None:
        if self.tls is not None:
            try:
                connection = self.tls.wrap_socket(connection, server_side=True)
            except OSError:
                return  # the fetcher does not trust us
        with connection:
            text = b""
            while b"\r\n\r\n" not in text:
                text += connection.recv(4096)
            head = text.decode("latin-1")
            self.asked.append(head)
            host = next(line[6:] for line in head.split("\r\n") if line.startswith("Host: "))
            try:
                for place in range(0, len(answer := self.answers[host + head.split()[1]]), 1 if self.drip else 1 << 16):
                    connection.sendall(answer[place : place + (1 if self.drip else 1 << 16)])
                    time.sleep(self.drip)
            except OSError:  # the fetcher hung up
                self.cut_off.set()


def answer(body: bytes = b"pixels", status: str = "200 OK", length: int | None = None, **headers: str) -> bytes:
    headers = {"Content-Length": str(len(body) if length is None else length), "Connection": "close", **headers}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def fetch(net: Net, url: str, hosts: tuple[str, ...] = ("host",), max_bytes: int = 100, seconds: float = 20.0) -> bytes:
    target = io.BytesIO()
    Fetcher(hosts, max_bytes=max_bytes, seconds=seconds, resolve=net.resolve, connect=net.connect).fetch(url, target)
    return target.getvalue()


@contextmanager
def refused(message: str) -> Iterator[None]:
    with pytest.raises(FetchError) as caught:
        yield
    assert message in str(caught.value)


def test_an_allowed_host_is_asked_at_the_address_that_was_checked():
    net = Net({"host/a%20b.png?q=1": answer()}, {"host": [PUBLIC, "8.8.8.8"]})
    assert fetch(net, "http://HOST/a b.png?q=1#part") == b"pixels"
    assert net.connected == [(PUBLIC, 80)] and net.looked_up == ["host"]


def test_another_port_must_be_allowed_by_name():
    net = Net({"host:8080/": answer()})
    assert fetch(net, "http://host:8080", hosts=("host:8080",)) == b"pixels"
    assert net.connected == [(PUBLIC, 8080)]
    with refused("media from host:8080 are not allowed"):
        fetch(net, "http://host:8080/")


@pytest.mark.parametrize(
    "url, message",
    [
        ("http://other/a", "media from other are not allowed"),
        ("http://host.evil/a", "not allowed"),
        ("http://evil/host", "not allowed"),
        ("http://host@evil/a", "not of the form"),
        ("http://user:word@host/a", "not of the form"),
        ("http:///a", "not of the form"),
        ("http://host:99999/", "cannot be read"),
        ("http://[::1/", "cannot be read"),
    ],
)
def test_other_hosts_are_not_even_looked_up(url: str, message: str):
    net = Net({})
    with refused(message):
        fetch(net, url)
    assert not net.looked_up and not net.connected


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255"),
        *("::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1"),
        "fec0::1",
        "feff::1",
    ],
)
def test_private_addresses_are_refused_before_any_connection(address: str):
    assert not is_public(address)
    net = Net({}, {"host": [PUBLIC, address]})
    with refused("host leads to an address that is not public"):
        fetch(net, "http://host/a")
    assert not net.connected


@pytest.mark.parametrize("address", [PUBLIC, "2606:2800:220:1:248:1893:25c8:1946", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_public(address: str):
    assert is_public(address)


def test_every_redirect_is_checked_anew():
    to = {"Location": "http://other/b"}
    net = Net({"host/a": answer(b"", "302 Found", **to), "other/b": answer()})
    with refused("media from other are not allowed"):
        fetch(net, "http://host/a")
    assert fetch(net, "http://host/a", hosts=("host", "other")) == b"pixels"
    private = Net({"host/a": answer(b"", "302 Found", **to)}, {"other": ["169.254.169.254"]})
    with refused("other leads to an address that is not public"):
        fetch(private, "http://host/a", hosts=("host", "other"))
    assert len(private.connected) == 1


def test_a_name_server_that_changes_its_mind_is_met_at_the_next_hop():
    net = Net({"rebinding/a": answer(b"", "307 Moved", Location="/b"), "rebinding/b": answer()})
    with refused("not public"):
        fetch(net, "http://rebinding/a", hosts=("rebinding",))
    assert net.connected == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    "location, message", [("file:///etc/passwd", "not of the form"), ("//host:22/", "not allowed"), ("/a", "redirects more than 3")]
)
def test_redirects_lead_nowhere_else(location: str, message: str):
    with refused(message):
        fetch(Net({"host/a": answer(b"", "301 Moved", Location=location)}), "http://host/a")


def test_too_many_bytes_end_the_fetch_whatever_the_header_says():
    for length in (None, 10):
        body = answer(b"x" * 101, length=length)
        if length is None:
            with refused("more than the 100 bytes allowed"):
                fetch(Net({"host/": body}), "http://host/")
        else:
            assert fetch(Net({"host/": body}), "http://host/") == b"x" * 10
    endless = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 5000
    with refused("more than the 100 bytes allowed"):
        fetch(Net({"host/": endless}), "http://host/")


def test_a_server_that_drips_is_cut_off():
    for drip in (answer(b"x" * 90), b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 90, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000):
        net = Net({"host/": drip}, drip=0.02)
        with refused("did not arrive within 0.3 seconds"):
            fetch(net, "http://host/", seconds=0.3)
        assert net.cut_off.wait(60), "all of it was read"


@pytest.mark.parametrize(
    "raw, message",
    [
        (answer(status="404 Not Found"), "host answered with status 404"),
        (answer(b"", "302 Found"), "without saying where to"),
        (answer(b"abc", length=50), "ended the medium 47 bytes early"),
        (b"HTTP/1.1 200 OK\r\nX: cut off here", "answered with no bytes"),
        (b"no http\r\n\r\n", "gave no usable answer"),
        (b"", "gave no usable answer"),
    ],
)
def test_unusable_answers_say_so(raw: bytes, message: str):
    with refused(message):
        fetch(Net({"host/": raw}), "http://host/")


def test_a_host_without_address_or_that_cannot_be_reached_says_so():
    with refused("host has no address"):
        fetch(Net({}, {"host": []}), "http://host/")

    def broken(address: str, port: int, seconds: float) -> socket.socket:
        raise ConnectionRefusedError("refused")

    fetcher = Fetcher(["host"], max_bytes=9, seconds=1, resolve=Net({}).resolve, connect=broken)
    with refused("host cannot be reached (refused)"):
        fetcher.fetch("http://host/", io.BytesIO())


def test_https_verifies_the_hosts_name_and_is_cut_off_in_time_too(tmp_path: Path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed; it makes the certificate of this test")
    made, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=host", "-addext", "subjectAltName=DNS:host", "-keyout", str(key), "-out", str(made)]
    subprocess.run(command, check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made, key)
    client = ssl.create_default_context(cafile=str(made))

    def over_tls(net: Net, url: str, tls: ssl.SSLContext | None = client, seconds: float = 20.0) -> bytes:
        net.tls, target = server, io.BytesIO()
        hosts = ("host", "other")
        Fetcher(hosts, max_bytes=100, seconds=seconds, resolve=net.resolve, connect=net.connect, tls=tls).fetch(url, target)
        return target.getvalue()

    net = Net({"host/a": answer(), "other/a": answer()})
    assert over_tls(net, "https://host/a") == b"pixels" and net.connected == [(PUBLIC, 443)]
    for url, tls in (("https://other/a", client), ("https://host/a", None)):
        with refused("gave no usable answer (" if tls is None else "certificate verify failed"):
            over_tls(net, url, tls)
    with refused("did not arrive within 0.5 seconds"):
        over_tls(Net({"host/a": answer(b"x" * 90)}, drip=0.05), "https://host/a", seconds=0.5)


def test_a_request_may_have_less_left_than_a_medium_may_have():
    """The host says the length before the first byte comes; without a length, the bytes are counted."""
    for length in ({}, {"Transfer-Encoding": "chunked"}):
        body = b"32\r\n" + b"x" * 50 + b"\r\n0\r\n\r\n" if length else b"x" * 50
        headers = {"Connection": "close", **(length or {"Content-Length": "50"})}
        lines = ["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        net, target = Net({"host/a": "\r\n".join(lines).encode() + body}), io.BytesIO()
        fetcher = Fetcher(("host",), max_bytes=100, seconds=20.0, resolve=net.resolve, connect=net.connect)
        with refused("the medium from host has more than the 49 bytes allowed"):
            fetcher.fetch("http://host/a", target, most=49)
        assert not target.getvalue()
        fetcher = Fetcher(("host",), max_bytes=100, seconds=20.0, resolve=net.resolve, connect=net.connect)
        fetcher.fetch("http://host/a", target, most=50)
        assert target.getvalue() == b"x" * 50
