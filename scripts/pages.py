"""What the scripts that make a page of the docs have in common: write it, or say that it is out of date."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def with_table(page: Path, script: str, table: str) -> str:
    """A page's text with a table between the two marks of a script.

    Raises:
        ValueError: the page has no marks.
    """
    begin, end = f"<!-- scripts/{script}: begin -->", f"<!-- scripts/{script}: end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    text = page.read_text(encoding="utf-8")
    if not pattern.search(text):
        raise ValueError(f"{page} lacks the lines {begin} and {end}; put them where the table belongs")
    return pattern.sub(lambda _: f"{begin}\n{table}\n{end}", text)


def write_or_check(page: Path, make: Callable[[], str], script: str) -> int:
    """Writes the page; with --check on the command line compares it. Returns the exit status."""
    if sys.argv[1:] != ["--check"]:
        page.write_text(make(), encoding="utf-8")
        return 0
    current = page.is_file() and page.read_text(encoding="utf-8") == make()
    if not current:
        print(f"{page} is out of date; run python scripts/{script}", file=sys.stderr)
    return int(not current)
