"""Curves read as one clean run after any number of restarts."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from mindspeed_vita.engine.metrics import MetricsLog, append, truncate
from mindspeed_vita.files.write_fault import one_line


def steps(path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_beyond_the_resumed_step_go(tmp_path):
    log = MetricsLog(tmp_path, step=0)
    for step in range(1, 6):
        log.write({"step": step, "loss": 10.0 - step})
    log = MetricsLog(tmp_path, step=3)
    log.write({"step": 4, "loss": 1.0})
    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3, 4]
    assert (log.first_loss, log.last_loss) == (9.0, 1.0)


def test_a_torn_last_line_goes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert truncate(path, 5) == [{"step": 1, "loss": 2.0}]
    append(path, [{"step": 2, "loss": 1.0}])
    assert steps(path) == [1, 2]


def test_a_last_line_that_lacks_only_its_end_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    truncate(path, 5)
    append(path, [{"step": 3}])
    assert steps(path) == [1, 2, 3]


def test_only_the_lines_of_the_run_itself_are_dropped_from_a_shared_file(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    foreign = b'not JSON\n[1]\n{"step": "x"}\n{"note": 1}\n{"step":  9,  "run": "b"}\r\n{"step": 9}\n'
    path.write_bytes(foreign)
    append(path, [{"run": "a", "step": step} for step in (0, 5, 6)])
    assert truncate(path, 5, run="a") == [{"run": "a", "step": 0}, {"run": "a", "step": 5}]
    assert path.read_bytes() == foreign + b'{"run": "a", "step": 0}\n{"run": "a", "step": 5}\n'
    path.chmod(0o400)
    before = path.stat()
    truncate(path, 5, run="c")
    assert path.stat().st_ino == before.st_ino, "a file with nothing of ours to drop is not written"


def test_lines_without_step_or_loss_do_not_stop_a_run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"note": "by hand"}\n{"step": 1}\n{"step": 2, "loss": 3.0}\n')
    log = MetricsLog(tmp_path, step=2)
    assert (log.first_loss, log.last_loss) == (3.0, 3.0)


def test_a_full_disk_names_the_file_and_what_to_do(tmp_path):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(OSError) as raised:
        append(full, [{"step": 1}])
    assert one_line(raised.value) == "/dev/full: cannot be written (No space left on device); free space and start again"
    assert raised.value.errno == errno.ENOSPC and raised.value.filename == "/dev/full"
    with pytest.raises(OSError, match="Is a directory") as raised:
        append(tmp_path, [{"step": 1}])
    assert raised.value.filename == str(tmp_path) and "free space" not in one_line(raised.value)


def test_a_new_run_has_no_losses(tmp_path):
    log = MetricsLog(tmp_path, step=0)
    assert log.first_loss is None
    assert truncate(tmp_path / "absent.jsonl", 3) == []
