"""Fetches media over http(s) from allowed hosts only, never from an address of a private network.

The host's addresses are checked and the connection goes to one of them, so a second answer of the name server cannot lead elsewhere.
Every redirect is a new address and is checked in the same way.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import BinaryIO, Optional
from urllib.parse import quote, urljoin, urlsplit

Resolve = Callable[[str, int], list[str]]
"""(host, port) -> addresses, as the system's resolver gives them."""
Connect = Callable[[str, int, float], socket.socket]
"""(address, port, seconds) -> a connected socket."""

_HEADERS = {"User-Agent": "mindspeed_vita", "Accept": "image/*, video/*", "Accept-Encoding": "identity"}
_PIECE = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_PATH_SAFE = "/%:=&?~+!$,;'@()*[]-._"


class FetchError(ValueError):
    """A medium that is not fetched, and why."""


class Fetcher:
    """Fetches from a list of hosts.

    Args:
        hosts: allowed ones, as "host" (its usual ports) or "host:port".
        max_bytes: largest medium.
        seconds: from the first look-up to the last byte, redirects included.
        resolve, connect: name look-up and connection; tests hand in their own.
        tls: how https is verified; None takes the system's certificates.
    """

    def __init__(
        self,
        hosts: Iterable[str],
        *,
        max_bytes: int,
        seconds: float,
        resolve: Optional[Resolve] = None,
        connect: Optional[Connect] = None,
        tls: Optional[ssl.SSLContext] = None,
    ) -> None:
        self._hosts = frozenset(host.lower().rstrip(".") for host in hosts)
        self._max_bytes, self._seconds = max_bytes, seconds
        self._resolve, self._connect, self._tls = resolve or _system_resolve, connect or _system_connect, tls

    def fetch(self, url: str, target: BinaryIO, most: Optional[int] = None) -> None:
        """Writes what a URL gives to a file.

        Args:
            url: of the medium.
            target: the file.
            most: bytes that it may have, where that is less than max_bytes.

        Raises:
            FetchError: the host or an address is not allowed, too large, too slow, or no answer with status 200.
        """
        deadline = time.monotonic() + self._seconds
        most = self._max_bytes if most is None else min(most, self._max_bytes)
        for _ in range(_MOST_REDIRECTS + 1):
            location = self._fetch_one(url, target, deadline, most)
            if location is None:
                return
            url = urljoin(url, location)
        raise FetchError(f"{_host_of(url)} redirects more than {_MOST_REDIRECTS} times")

    def _fetch_one(self, url: str, target: BinaryIO, deadline: float, most: int) -> Optional[str]:
        """One request; returns where it is redirected to, or None when the file is written."""
        scheme, host, port, path = self._parts(url)
        address = self._checked_address(host, port)
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._too_slow(host)
        try:
            raw = self._connect(address, port, left)
        except OSError as error:
            raise FetchError(f"{host} cannot be reached ({error})") from error
        # A time-out of the socket begins anew with each byte. This ends the connection at the deadline, whatever it is doing, through a
        # second descriptor: TLS takes the first one over.
        guard = raw.dup()
        alarm = threading.Timer(left, _shut, (guard,))
        alarm.start()
        try:
            with raw, closing(self._connection(scheme, host, port, raw, left)) as connection:
                return self._exchange(connection, path, host, target, deadline, most)
        except (OSError, http.client.HTTPException) as error:
            problem = FetchError(f"{host} gave no usable answer ({error or type(error).__name__})")
            raise (self._too_slow(host) if time.monotonic() >= deadline else problem) from error
        finally:
            alarm.cancel()
            guard.close()

    def _connection(self, scheme: str, host: str, port: int, raw: socket.socket, seconds: float) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(host, port, timeout=seconds)
        if scheme == "https":
            context = self._tls or ssl.create_default_context()
            connection = http.client.HTTPSConnection(host, port, timeout=seconds, context=context)
            raw = context.wrap_socket(raw, server_hostname=host)
        connection.sock = raw
        connection.auto_open = 0  # it must never look the host up by itself
        return connection

    def _exchange(
        self, connection: http.client.HTTPConnection, path: str, host: str, target: BinaryIO, deadline: float, most: int
    ) -> Optional[str]:
        connection.request("GET", path, headers=_HEADERS)
        with connection.getresponse() as answer:
            if answer.status in _REDIRECTS:
                location = answer.getheader("Location")
                if not location:
                    raise FetchError(f"{host} redirects without saying where to")
                return location
            if answer.status != 200:
                raise FetchError(f"{host} answered with status {answer.status}")
            size, too_large = 0, FetchError(f"the medium from {host} has more than the {most:,} bytes allowed")
            if answer.length is not None and answer.length > most:  # the host says so itself
                raise too_large
            while piece := answer.read(_PIECE):
                size += len(piece)
                if size > most:
                    raise too_large
                target.write(piece)
            if time.monotonic() >= deadline:  # to http.client, a connection that the alarm ended is an answer that ended
                raise self._too_slow(host)
            if answer.length:
                raise FetchError(f"{host} ended the medium {answer.length:,} bytes early")
            if not size:
                raise FetchError(f"{host} answered with no bytes")
        return None

    def _parts(self, url: str) -> tuple[str, str, int, str]:
        """Scheme, host, port and path of an allowed URL."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError as error:
            raise FetchError(f"the address cannot be read ({error})") from error
        if parts.scheme not in _PORTS or not host or parts.username is not None or parts.password is not None:
            raise FetchError("the address is not of the form http(s)://host/path")
        usual = _PORTS[parts.scheme]
        allowed = f"{host}:{port}" if port not in (None, usual) else host
        if allowed not in self._hosts:
            raise FetchError(f"media from {allowed} are not allowed; the server's --allow-host names the hosts that are")
        path = quote(parts.path or "/", safe=_PATH_SAFE) + (f"?{quote(parts.query, safe=_PATH_SAFE)}" if parts.query else "")
        return parts.scheme, host, usual if port is None else port, path

    def _checked_address(self, host: str, port: int) -> str:
        try:
            addresses = self._resolve(host, port)
        except OSError as error:
            raise FetchError(f"{host} has no address ({error})") from error
        if not addresses:
            raise FetchError(f"{host} has no address")
        for address in addresses:
            if not is_public(address):
                raise FetchError(f"{host} leads to an address that is not public; media are fetched from public addresses only")
        return addresses[0]

    def _too_slow(self, host: str) -> FetchError:
        return FetchError(f"the medium from {host} did not arrive within {self._seconds:g} seconds")


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet; of one that carries an IPv4 address, whether that one does, too."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = [found.ipv4_mapped, found.sixtofour, *(found.teredo or ())]
        if found.is_site_local:  # fec0::/10; ipaddress calls it global
            return False
        if found in _NAT64:
            inner.append(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF))
        carried = [one for one in inner if one is not None]
        if carried:
            return all(is_public(str(one)) for one in carried)
    return found.is_global and not found.is_multicast and not found.is_reserved


def _system_resolve(host: str, port: int) -> list[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _system_connect(address: str, port: int, seconds: float) -> socket.socket:
    return socket.create_connection((address, port), timeout=seconds)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # closed already


def _host_of(url: str) -> str:
    return urlsplit(url).hostname or "the host"
