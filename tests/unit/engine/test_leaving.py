"""A process that is ended from another thread than its main one."""

from __future__ import annotations

import os
from pathlib import Path

from mindspeed_vita.engine.leaving import Leaving
from mindspeed_vita.engine.stopping import STATUS_FILE


def test_the_status_is_told_to_the_launcher_before_anything_else_happens(tmp_path: Path) -> None:
    told = tmp_path / "status"

    def order() -> None:  # such as giving a lock back, which may take its time; the launcher's SIGTERM comes meanwhile
        (tmp_path / "seen").write_text("".join(path.read_text() for path in tmp_path.glob("status.*")))

    child = os.fork()
    if not child:
        os.environ[STATUS_FILE] = str(told)
        Leaving(order)(77, "")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 77
    assert (tmp_path / "seen").read_text() == "77"
