"""Who may use the server: keys, requests per key, and the address it listens at."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindspeed_vita.serving.access import ApiKeys, check_binding, check_host, read_keys
from mindspeed_vita.serving.errors import ApiError


def status(keys: ApiKeys, authorization: str | None) -> int:
    try:
        keys.admit(authorization)
    except ApiError as error:
        return error.status
    return 200


def test_without_keys_everyone_is_let_in():
    assert not ApiKeys() and status(ApiKeys(), None) == 200 == status(ApiKeys(), "Bearer anything")


def test_only_known_keys_are_let_in():
    keys = ApiKeys(["first", "sécond"])
    assert keys
    assert [status(keys, f"Bearer {key}") for key in ("first", "sécond", " first ")] == [200, 200, 200]
    assert status(keys, "bearer first") == 200
    for wrong in (None, "", "Bearer", "Bearer ", "first", "Basic first", "Bearer firs", "Bearer first2", "Bearer first second"):
        assert status(keys, wrong) == 401


def test_a_refusal_says_what_was_expected_and_repeats_no_key():
    with pytest.raises(ApiError, match="Authorization: Bearer KEY"):
        ApiKeys(["a"]).admit(None)
    with pytest.raises(ApiError) as caught:
        ApiKeys(["right"]).admit("Bearer guess")
    assert caught.value.code == "invalid_api_key" and "guess" not in caught.value.message and "right" not in caught.value.message


def test_each_key_has_its_requests_in_any_minute():
    now = 0.0
    keys = ApiKeys(["a", "b"], per_minute=2, clock=lambda: now)
    assert [status(keys, "Bearer a") for _ in range(3)] == [200, 200, 429]
    assert status(keys, "Bearer b") == 200
    now = 59.5
    with pytest.raises(ApiError) as caught:
        keys.admit("Bearer a")
    assert caught.value.retry_after == 1
    assert status(keys, "Bearer none") == 401
    now = 60.0
    assert [status(keys, "Bearer a") for _ in range(3)] == [200, 200, 429]


def test_without_keys_the_limit_is_everyones():
    keys = ApiKeys(per_minute=1, clock=lambda: 0.0)
    assert [status(keys, "Bearer a"), status(keys, "Bearer b")] == [200, 429]


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text("# team\nfirst\n\n  second \n", encoding="utf-8")
    assert read_keys(file, "third, fourth,") == ["first", "second", "third", "fourth"]
    assert read_keys(None, None) == [] == read_keys(None, "")


@pytest.mark.parametrize(
    "content, message",
    [(b"", "holds no key"), (b"# x\n", "holds no key"), (b"a b\n", "key 1 has white space"), (b"\xff", "cannot be read")],
)
def test_a_file_without_usable_keys_is_refused(tmp_path: Path, content: bytes, message: str):
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_keys(file, None)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="cannot be read"):
        read_keys(tmp_path / "none", None)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_key(host: str):
    check_binding(host, ApiKeys(), insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "example.com", ""])
def test_elsewhere_needs_a_key_or_a_flag(host: str):
    with pytest.raises(ValueError, match="without a key"):
        check_binding(host, ApiKeys(), insecure=False)
    check_binding(host, ApiKeys(["a"]), insecure=False)
    check_binding(host, ApiKeys(), insecure=True)


@pytest.mark.parametrize("header", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]", "127.1.2.3"])
def test_loopback_names_are_this_servers(header: str):
    check_host(header, ApiKeys(), "127.0.0.1")


@pytest.mark.parametrize("header", ["", "evil.example", "evil.example:8000", "localhost.evil.example", "10.0.0.5", "[fe80::1]"])
def test_other_names_are_not_unless_it_has_keys_or_listens_everywhere(header: str):
    with pytest.raises(ApiError, match="answers to localhost and 127.0.0.1 only") as caught:
        check_host(header, ApiKeys(), "127.0.0.1")
    assert caught.value.status == 403
    check_host(header, ApiKeys(["a"]), "127.0.0.1")
    check_host(header, ApiKeys(), "0.0.0.0")


def test_the_bound_host_is_this_servers():
    check_host("10.0.0.5:8000", ApiKeys(), "10.0.0.5")
    check_host("[2001:db8::1]:8000", ApiKeys(), "2001:db8::1")
