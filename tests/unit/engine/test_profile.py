"""The profiler's window without a run: what it costs outside, and what becomes of a trace that cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindspeed_vita.config import ProfileConfig
from mindspeed_vita.engine.profile import ProfileWindow
from mindspeed_vita.platform import get_platform
from mindspeed_vita.platform.phases import PHASES, phase, recording


def window(directory: Path, rank: int = 0) -> ProfileWindow:
    return ProfileWindow(ProfileConfig(steps=(2, 3)), get_platform("cpu"), directory, rank)


def test_a_phase_is_nothing_until_a_step_is_recorded() -> None:
    outside = {id(phase(name)) for name in PHASES}
    assert len(outside) == 1
    with recording(2):
        assert {id(phase(name)) for name in PHASES}.isdisjoint(outside)
    assert {id(phase(name)) for name in PHASES} == outside


def test_other_steps_and_other_ranks_record_nothing(tmp_path: Path) -> None:
    for rank, steps in ((0, (1, 4, 5)), (1, (1, 2, 3, 4))):
        recorder = window(tmp_path, rank)
        for step in steps:
            with recorder.step(step):
                assert phase("ring") is phase("head")
        recorder.close()
    assert not list(tmp_path.iterdir())


def test_a_trace_that_cannot_be_written_is_told_and_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "profile").write_text("a file in the folder's place")
    recorder = window(tmp_path)
    for step in (2, 3):
        with recorder.step(step):
            pass
    assert "profile: no trace of rank 0 was written: [Errno 17] File exists" in capsys.readouterr().err


def test_a_step_that_fails_leaves_the_trace_of_those_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = window(tmp_path)
    with recorder.step(2):
        pass
    with pytest.raises(RuntimeError, match="lost"), recorder.step(3):
        raise RuntimeError("lost")
    recorder.close()
    assert f"profile: steps up to 2 in {tmp_path / 'profile' / 'step_0000002_rank_0.json'}" in capsys.readouterr().err
    assert phase("ring") is phase("head")
