"""Writes the package's rooms into docs/architecture.md: who may import whom (pyproject.toml), and what each holds (its docstring).

    python scripts/rooms.py           # after a change of [tool.vita] or of a room's docstring
    python scripts/rooms.py --check   # exit status 1 where the page is out of date
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

try:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
except ModuleNotFoundError as error:
    sys.exit(f"{sys.argv[0]}: {error.name} is missing in {sys.executable}; run: source .venv/bin/activate (scripts/setup_env.sh makes it)")

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- scripts/rooms.py: begin -->", "<!-- scripts/rooms.py: end -->"


def settings() -> dict[str, Any]:
    """[tool.vita] of pyproject.toml: layers, leaves, sideways."""
    content: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return content["tool"]["vita"]  # type: ignore[no-any-return]


def table() -> str:
    """The order of imports and the table of rooms in Markdown."""
    layers = settings()["layers"]
    rows = [" <- ".join(", ".join(layer) for layer in layers), "", "| room | what it holds |", "|---|---|"]
    for room in (room for layer in layers for room in layer):
        docstring = ast.get_docstring(ast.parse((ROOT / "mindspeed_vita" / room / "__init__.py").read_text(encoding="utf-8"))) or ""
        rows.append(f"| `{room}/` | {docstring.splitlines()[0]} |")
    return "\n".join(rows)


def renewed(page: str) -> str:
    """A page with today's table between its two marks.

    Raises:
        ValueError: the page has no marks.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"{PAGE} lacks the lines {BEGIN} and {END}; put them where the table belongs")
    return pattern.sub(lambda _: f"{BEGIN}\n{table()}\n{END}", page)


def main() -> int:
    """Writes the page, or compares it with --check."""
    page = PAGE.read_text(encoding="utf-8")
    new = renewed(page)
    if sys.argv[1:] == ["--check"]:
        if new != page:
            print(f"{PAGE} is out of date; run python scripts/rooms.py", file=sys.stderr)
        return int(new != page)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
