"""The page of versions shows the sets that the doctor knows, and they lie in the ranges that are installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_vita.checks.doctor import matrix
from mindspeed_vita.checks.doctor.tested_sets import tested_sets

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.delitem(sys.modules, "versions", raising=False)
    import versions

    return versions


def test_the_page_shows_the_sets_of_the_file() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "versions.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_page_out_of_date_is_renewed(versions, tmp_path: Path) -> None:
    from pages import with_table

    begin, end = "<!-- scripts/versions.py: begin -->", "<!-- scripts/versions.py: end -->"
    page = tmp_path / "page.md"
    page.write_text(f"before\n{begin}\n| old |\n{end}\nafter\n")
    table = versions.table()
    assert with_table(page, "versions.py", table) == f"before\n{begin}\n{table}\n{end}\nafter\n"
    assert all(one.torch in table and core in table for one in tested_sets() for core in one.cores)
    page.write_text("no table here")
    with pytest.raises(ValueError, match="lacks the lines"):
        with_table(page, "versions.py", table)


def test_every_set_lies_in_the_ranges() -> None:
    ranges = {requirement.name: requirement for requirement in matrix.PACKAGES}
    for one in tested_sets():
        assert ranges["torch"].allows(one.torch) and ranges["transformers"].allows(one.transformers)
        assert all(matrix.line(core) in matrix.CORE_LINES for core in one.cores)
    assert {matrix.line(core) for one in tested_sets() for core in one.cores} == set(matrix.CORE_LINES)
