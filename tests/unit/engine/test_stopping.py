"""A first stop signal is noted while steps are trained, and ends a run at once elsewhere; a second always does; old handlers come back."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext

import pytest

from mindspeed_vita.engine.stopping import SIGNALS, STATUS_FILE, Stopped, report_status, stop_signals


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stop_signal_outside_of_steps_ends_the_block(number):
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=signal.Signals(number).name), stop_signals():
        os.kill(os.getpid(), number)
        signal.pause()
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_inside_of_steps_the_first_is_noted_and_the_second_ends_the_block(first, second, capfd):
    with pytest.raises(Stopped) as stopped, stop_signals() as request, request.finishing_steps():
        os.kill(os.getpid(), first)
        assert request.asked == first and request.agreed == 0, "one rank does not decide alone"
        assert "a second signal ends it at once" in capfd.readouterr().err
        os.kill(os.getpid(), second)
        signal.pause()
    assert stopped.value.number == second


def test_a_signal_after_the_last_step_ends_the_block():
    with pytest.raises(Stopped), stop_signals() as request:
        with request.finishing_steps():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()


def test_a_signal_that_reaches_this_rank_after_all_agreed_to_stop_is_no_second_one():
    with stop_signals() as request:
        with request.finishing_steps():
            request.agreed = signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.asked == signal.SIGTERM
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()


def test_only_the_first_rank_says_that_it_stops(monkeypatch, capfd):
    monkeypatch.setenv("RANK", "3")
    with stop_signals() as request, request.finishing_steps():
        os.kill(os.getpid(), signal.SIGINT)
        assert request.asked == signal.SIGINT
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("finishing", [False, True])
def test_a_worker_without_handlers_of_its_own_says_nothing_and_lives_on_only_while_steps_are_finished(number, finishing, capfd):
    with stop_signals() as request, request.finishing_steps() if finishing else nullcontext():
        worker = os.fork()
        if not worker:
            try:
                os.kill(os.getpid(), number)
            finally:  # Stopped must not run the rest of the tests a second time
                os._exit(0 if finishing else 1)
        status = os.waitpid(worker, 0)[1]
        assert not request.asked
    assert os.waitstatus_to_exitcode(status) == (0 if finishing else -number)
    assert capfd.readouterr().err == ""


def test_each_start_of_a_run_has_one_status_for_the_launcher(tmp_path, monkeypatch):
    monkeypatch.setenv(STATUS_FILE, str(tmp_path / "status"))
    for start, statuses in (("0", (0, 77, 1)), ("1", (75, 77))):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", start)
        for status in statuses:
            report_status(status)
    found = {path.name: path.read_text() for path in sorted(tmp_path.glob("status.*"))}
    assert found == {"status.000000": "77", "status.000001": "75"}, "the first of a start counts, and the last start is read"
