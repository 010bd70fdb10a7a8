"""Findings as lines for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from mindspeed_vita.checks.doctor.rules import Finding


def verdict(findings: Sequence[Finding]) -> str:
    """The last line."""
    problems = sum(finding.status == "problem" for finding in findings)
    notes = sum(finding.status == "note" for finding in findings)
    tail = f"{notes} note{'s' * (notes != 1)}" if notes else "no notes"
    return f"FAIL: {problems} problem{'s' * (problems != 1)}, {tail}" if problems else f"PASS: no problem, {tail}"


def as_text(findings: Sequence[Finding], *, kind: str, engine: str) -> str:
    """A line a finding, two more where something is to be done, and the verdict."""
    width = max(len(finding.name) for finding in findings)
    lines = [f"device {kind}, engine {engine}"]
    for finding in findings:
        status = "PROBLEM" if finding.status == "problem" else finding.status
        lines.append(f"  {status:<7} {finding.name:<{width}} {finding.found}")
        if finding.status != "ok":
            lines += [f"{'':>{width + 11}}{text}" for text in _advice(finding)]
    return "\n".join([*lines, verdict(findings)])


def as_json(findings: Sequence[Finding], *, kind: str, engine: str) -> str:
    """The same as one object: device, engine, ok, findings."""
    ok = all(finding.status != "problem" for finding in findings)
    return json.dumps({"device": kind, "engine": engine, "ok": ok, "findings": [asdict(finding) for finding in findings]}, indent=1)


def _advice(finding: Finding) -> list[str]:
    expected = [f"expected: {finding.expected}"] if finding.expected else []
    return expected + ([f"remedy: {finding.remedy}"] if finding.remedy else [])
