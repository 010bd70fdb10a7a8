"""Damaged recipes, pipelines, records, checkpoints and request bodies: each is read, or refused by a message that names the file."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {"recipes": 200, "pipelines": 150, "records": 200, "native": 300, "exports": 150, "megatron": 150, "adapters": 200, "tags": 200}
COUNTS["bodies"] = 1000


@pytest.fixture
def fuzz_files(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import fuzz_files

    assert set(COUNTS) == set(fuzz_files.PARTS)
    return fuzz_files


@pytest.mark.parametrize("part", COUNTS)
def test_damaged_files_are_read_or_refused_by_name(fuzz_files: ModuleType, tmp_path: Path, part: str) -> None:
    counts, findings = fuzz_files.fuzz(part, COUNTS[part], tmp_path)
    assert not findings
    assert min(counts["read"], counts["refused"]) >= COUNTS[part] // 40, "cases of one outcome only show little"


def test_what_is_neither_read_nor_refused_by_name_is_a_finding(fuzz_files: ModuleType, tmp_path: Path) -> None:
    def fails() -> None:
        raise KeyError("x")

    assert fuzz_files.guarded(fails, tmp_path) == ("finding", "KeyError: 'x'")
    assert fuzz_files.guarded(lambda: int("x"), tmp_path)[0] == "finding", "the message names no file"
