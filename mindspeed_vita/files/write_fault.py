"""What a failed write says."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def named_write_fault(path: Path) -> Iterator[None]:
    """A write that fails names the file, which the system's own error does not, and says what to do where the disk is full.

    Raises:
        OSError: as the system's, with the file.
    """
    try:
        yield
    except OSError as error:
        advice = "; free space there and start again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise OSError(error.errno, f"cannot be written ({error.strerror}){advice}", str(path)) from error
