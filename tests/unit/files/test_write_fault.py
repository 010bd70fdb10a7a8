"""A write without room says where it was and how to make room, whichever limit it met, and whatever was being written."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from mindspeed_vita.checkpoint.conversion import Conversion
from mindspeed_vita.checkpoint.native.ranks import SaveFailed, fail, on_first_rank, reason_of
from mindspeed_vita.data.media.arena import memory_to_share
from mindspeed_vita.engine.sinks import TensorBoard
from mindspeed_vita.files import stores
from mindspeed_vita.files.publish import whole_file, whole_folder
from mindspeed_vita.files.write_fault import NO_ROOM, named_write_fault, one_line, room_advice
from mindspeed_vita.files.writing import write_text, written_below

ADVICE = {
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space, or have the quota raised,",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
}


@pytest.fixture
def small_files() -> Iterator[None]:
    """As ulimit -f: no file can be larger than 10 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("number", NO_ROOM)
def test_every_message_about_a_write_says_how_to_make_room(number: int, tmp_path: Path) -> None:
    error, advice = OSError(number, os.strerror(number)), ADVICE[number]
    assert room_advice(error) == advice
    with pytest.raises(OSError) as named, named_write_fault(tmp_path / "x"):
        raise error
    assert one_line(named.value) == f"{tmp_path / 'x'}: cannot be written ({os.strerror(number)}); {advice} and start again"
    assert one_line(error) == f"{os.strerror(number)}; {advice} and start again"

    def full() -> None:
        raise error

    with pytest.raises(ValueError) as first:
        on_first_rank(full)
    assert str(first.value) == one_line(error)
    with pytest.raises(SaveFailed) as failed:
        fail(tmp_path, reason_of(error))
    assert f"{os.strerror(number)}; {advice} or choose another checkpoint.directory" in str(failed.value)
    assert Conversion().advice(error) == f"{advice} or choose another --output"
    with pytest.raises(ValueError, match="set data.index to a folder") as below, written_below(tmp_path, "data.index"):
        raise OSError(number, os.strerror(number), str(tmp_path / "x"))
    assert f"; {advice} or set data.index" in str(below.value)


@pytest.mark.parametrize("number", NO_ROOM)
def test_no_room_on_this_host_is_no_fault_of_a_store(number: int) -> None:
    with pytest.raises(OSError) as raised, stores._named("s3://bucket/x"):
        raise OSError(number, os.strerror(number))
    assert raised.value.errno == number


def test_a_fault_of_another_kind_gets_no_such_advice(tmp_path: Path) -> None:
    error = OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(OSError) as raised, whole_file(tmp_path / "x"):
        raise error
    assert raised.value.filename is None, "it may be about what is read"
    assert one_line(error) == str(error) and room_advice(error) == ""
    with pytest.raises(SaveFailed) as failed:
        fail(tmp_path, reason_of(error))
    assert f"{error}; choose another checkpoint.directory; there is no earlier" in str(failed.value)
    assert Conversion().advice(error) == "choose another --output"
    assert Conversion(origin={}).advice(error).startswith("run the same command again")


def test_a_fault_without_a_number_may_be_a_full_disk(tmp_path: Path) -> None:
    error = OSError("unexpected pos 64 vs 0")  # torch's
    with pytest.raises(SaveFailed, match="free space or choose another checkpoint.directory"):
        fail(tmp_path, reason_of(error))
    assert Conversion().advice(error) == "free space or choose another --output"


def test_a_file_over_the_limit_is_named(tmp_path: Path, small_files: None) -> None:
    content = "x" * 20_000
    with pytest.raises(OSError) as raised, whole_file(tmp_path / "file") as temporary:
        temporary.write_text(content)
    assert one_line(raised.value) == f"{tmp_path / 'file'}: File too large; {ADVICE[errno.EFBIG]} and start again"
    with pytest.raises(OSError) as raised, whole_folder(tmp_path / "folder", known_by="x") as temporary:
        temporary.mkdir()
        (temporary / "x").write_text(content)
    assert raised.value.filename == str(tmp_path / "folder")
    with pytest.raises(OSError) as raised:
        write_text(tmp_path / "text", content)
    assert raised.value.filename == str(tmp_path / "text")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_events_that_cannot_be_written_are_named(number: int, tmp_path: Path) -> None:
    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            pass

        def add_scalar(self, name: str, value: float, step: int) -> None:
            raise OSError(number, os.strerror(number))

    with pytest.raises(OSError) as raised:
        TensorBoard(tmp_path, 0, Writer).write({"step": 1, "loss": 2.0}, evaluation=False)
    assert one_line(raised.value).startswith(f"{tmp_path}: {os.strerror(number)}")


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no memfd_create on this system")
def test_shared_memory_over_the_limit_is_named(small_files: None) -> None:
    with pytest.raises(OSError) as raised:
        memory_to_share()
    said = one_line(raised.value)
    assert said == f"the memory that is shared with the decoder of pictures (32 MiB): File too large; {ADVICE[errno.EFBIG]} and start again"
