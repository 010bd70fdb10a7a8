"""The simulated Ascend refuses what the documentation forbids, and keeps the traps that are legal."""

from __future__ import annotations

from mindspeed_vita.checks.parity.pool import LayoutPool


def test_every_forbidden_call_is_refused(npus: LayoutPool) -> None:
    assert npus.run("tests.npu.bad_calls:accepted")[0] == []


def test_legal_calls_mean_what_the_documentation_says(npus: LayoutPool) -> None:
    errors = npus.run("tests.npu.bad_calls:silent_traps")[0]
    assert all(abs(error) < 1e-6 for error in errors.values()), errors
