"""A project that states the same version and lacks what another imports is found out; changed bodies are one line at the start."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from mindspeed_vita.integration.patching.ledger import Ledger, Upstream
from mindspeed_vita.integration.patching.sources import MODULE, VALUE
from mindspeed_vita.integration.patching.starting import compare_sources, used_names
from patches.tool.checkout import Checkouts
from patches.tool.tables import build_table, table_text
from patches.tool.verify import verify
from tests.unit.integration.patching.made_up import ledger, write

UPSTREAMS = (
    Upstream(project="fakemega", package="fakemega", version_file="setup.py"),
    Upstream(project="fakespeed", package="fakespeed", version_file="setup.py", versions=("1.0",), used_by=("fakemega",)),
)
FILES = {
    "fakespeed/ring.py": """
        import os
        from json import dumps as written
        SIZE: int = 3
        if SIZE:
            def attend(q):
                return q
        class Ring: ...
    """,
    "fakespeed/lazy/__init__.py": "from fakespeed.ring import *\nfrom .. import ring as other\n",
    "fakemega/model.py": """
        from fakespeed.ring import attend, SIZE, written
        from fakespeed_more import stranger
        import fakespeed.ring as whole

        def late():
            from fakespeed.lazy import Ring, other
            try:
                from fakespeed.lazy import optional
            except ImportError:
                pass
    """,
    "setup.py": "__version__ = '1.0'\n",
}


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    """A ledger with a table of the files as they are."""
    (tmp_path / "book" / "signatures").mkdir(parents=True)
    write(tmp_path / "sources", FILES)
    made = ledger(folder=tmp_path / "book", upstreams=UPSTREAMS)
    table = build_table(made, Checkouts.in_folders([tmp_path / "sources"], UPSTREAMS), "as it is")
    (tmp_path / "book" / "signatures" / "now.json").write_text(table_text(table), encoding="utf-8")
    return made


def test_every_import_is_found_wherever_it_stands_and_told_what_it_is(book: Ledger, tmp_path: Path):
    found = used_names(book, Checkouts.in_folders([tmp_path / "sources"], UPSTREAMS))
    kinds = {name.removeprefix("fakespeed."): source if source in (MODULE, VALUE, None) else "body" for name, source in found.items()}
    assert kinds == {
        "lazy.Ring": "body",
        "lazy.optional": None,
        "lazy.other": MODULE,
        "ring": MODULE,
        "ring.SIZE": VALUE,
        "ring.attend": "body",
        "ring.written": VALUE,
    }


def test_the_same_version_without_a_name_is_a_problem(book: Ledger, tmp_path: Path):
    assert verify(book, Checkouts.in_folders([tmp_path / "sources"], UPSTREAMS)).problems == []
    write(tmp_path / "sources", {"fakespeed/ring.py": "SIZE = 3\n"})
    report = verify(book, Checkouts.in_folders([tmp_path / "sources"], UPSTREAMS))
    assert [finding.found for finding in report.findings if finding.target == "fakespeed"] == ["1.0"]
    assert [problem.split(", which")[0] for problem in report.problems] == [
        "fakespeed in fakemega: fakemega imports fakespeed.lazy.Ring",
        "fakespeed in fakemega: fakemega imports fakespeed.ring.attend",
        "fakespeed in fakemega: fakemega imports fakespeed.ring.written",
    ]
    assert report.problems[-1].endswith("check out the fakespeed that this fakemega was made for (scripts/install_ascend.sh names it)")


def test_a_start_refuses_missing_names_and_says_which_bodies_changed(book: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(tmp_path / "sources"))
    importlib.invalidate_caches()
    assert compare_sources(book) == []
    ring = (tmp_path / "sources" / "fakespeed" / "ring.py").read_text()
    write(tmp_path / "sources", {"fakespeed/ring.py": ring.replace("return q", "return -q")})
    expected = "1 functions of upstream have other bodies than in as it is, fakespeed.ring.attend: vita patches verify"
    assert compare_sources(book) == [expected]
    write(tmp_path / "sources", {"fakespeed/ring.py": ring.replace("def attend", "def moved")})
    with pytest.raises(ValueError, match="fakespeed lacks 1 names that fakemega imports, fakespeed.ring.attend; check out the fakespeed"):
        compare_sources(book)


def test_a_user_that_is_no_project_is_refused(tmp_path: Path):
    from mindspeed_vita.integration.patching import load_ledger

    (tmp_path / "manifest.toml").write_text(
        'format = 1\n[[upstream]]\nproject = "a"\npackage = "a"\nversion_file = "setup.py"\nused_by = ["b"]\n', encoding="utf-8"
    )
    with pytest.raises(ValueError, match="upstream a: used_by 'b'; expected a project"):
        load_ledger(tmp_path)
