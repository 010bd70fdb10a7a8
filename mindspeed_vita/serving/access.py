"""Who may use the server: API keys, requests per key, and where it may listen."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Optional

from mindspeed_vita.serving.errors import ApiError

_MINUTE = 60.0


class ApiKeys:
    """The keys that are accepted. None at all accepts everyone.

    Only digests are kept, and every one of them is compared, in constant time.

    Args:
        keys: as clients send them.
        per_minute: requests of one key in any 60 seconds; without keys, of everyone together. None sets no limit.
        clock: seconds.
    """

    def __init__(self, keys: Iterable[str] = (), *, per_minute: Optional[int] = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._digests = [_digest(key) for key in keys]
        self._per_minute, self._clock = per_minute, clock
        self._times: dict[bytes, deque[float]] = {}

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, authorization: Optional[str]) -> None:
        """Lets one request in.

        Args:
            authorization: the request's Authorization header.

        Raises:
            ApiError: 401: no key, or none of ours. 429: the key has had its requests.
        """
        key = self._key(authorization) if self._digests else b""
        if self._per_minute is None:
            return
        now, times = self._clock(), self._times.setdefault(key, deque())
        while times and now - times[0] >= _MINUTE:
            times.popleft()
        if len(times) >= self._per_minute:
            wait = int(_MINUTE - (now - times[0])) + 1
            message = f"more than {self._per_minute} requests in 60 seconds; try again in {wait} seconds"
            raise ApiError(429, message, code="rate_limit_exceeded", retry_after=wait)
        times.append(now)

    def _key(self, authorization: Optional[str]) -> bytes:
        kind, _, key = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not key.strip():
            raise ApiError(401, "no API key was sent; expected the header Authorization: Bearer KEY", code="missing_api_key")
        digest = _digest(key.strip())
        # no early end: how long it takes says nothing about which key was close
        if not sum(hmac.compare_digest(digest, known) for known in self._digests):
            raise ApiError(401, "the API key is not known to this server", code="invalid_api_key")
        return digest


def read_keys(file: Optional[str | Path], environment: Optional[str]) -> list[str]:
    """Keys of a file with one key a line (# begins a comment line), and those of an environment variable, separated by commas.

    Raises:
        ValueError: the file cannot be read or holds no key, or a key has white space in it.
    """
    lines: list[str] = []
    if file is not None:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the file of API keys {file} cannot be read ({error})") from error
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        if not lines:
            raise ValueError(f"the file of API keys {file} holds no key; expected one a line")
        for number, line in enumerate(lines, start=1):
            if line.split() != [line]:
                raise ValueError(f"the file of API keys {file}: key {number} has white space in it; expected one key a line")
    return [*lines, *(key.strip() for key in (environment or "").split(",") if key.strip())]


def check_binding(host: str, keys: ApiKeys, *, insecure: bool) -> None:
    """Refuses to listen where others reach the server without a key.

    Raises:
        ValueError: the host is not this machine's loopback, there is no key, and insecure is not set.
    """
    if _is_loopback(host) or keys or insecure:
        return
    raise ValueError(f"--host {host} lets other machines in without a key; set --api-key-file, or --insecure if that is what you want")


def check_host(header: str, keys: ApiKeys, bound: str) -> None:
    """Without keys, refuses a request that was sent to another name than this server's.

    A page of another site may have its name lead to this machine; the browser then sends what that page asks here.

    Args:
        header: the request's Host header, with or without a port.
        keys: the accepted ones; a page of another site knows none of them.
        bound: where the server listens. All addresses of a machine (0.0.0.0, ::) have names that are not known here: nothing is refused.

    Raises:
        ApiError: 403: neither a loopback name nor the bound host.
    """
    if keys or bound in ("", "0.0.0.0", "::"):
        return
    name = header[1:].partition("]")[0] if header.startswith("[") else header.partition(":")[0]
    if not _is_loopback(name.lower()) and name.lower() != bound.strip("[]").lower():
        message = f"the request was sent to the host {name[:100]!r}; without API keys this server answers to localhost and {bound} only"
        raise ApiError(403, message, code="host_not_allowed")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # a name: where it leads is not known here


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
