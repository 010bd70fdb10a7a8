"""Writes the package's rooms into docs/architecture.md: who may import whom (pyproject.toml), and what each holds (its docstring).

    python scripts/rooms.py           # after a change of [tool.vita] or of a room's docstring
    python scripts/rooms.py --check   # exit status 1 where the page is out of date
"""

from __future__ import annotations

import ast
import sys

from pages import ROOT, with_table, write_or_check
from project_environment import packages_needed

with packages_needed():
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

PAGE = ROOT / "docs" / "architecture.md"


def table() -> str:
    """The order of imports and the table of rooms in Markdown."""
    layers: list[list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["vita"]["layers"]
    rows = [" <- ".join(", ".join(layer) for layer in layers), "", "| room | what it holds |", "|---|---|"]
    for room in (room for layer in layers for room in layer):
        docstring = ast.get_docstring(ast.parse((ROOT / "mindspeed_vita" / room / "__init__.py").read_text(encoding="utf-8"))) or ""
        rows.append(f"| `{room}/` | {docstring.splitlines()[0]} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, lambda: with_table(PAGE, "rooms.py", table()), "rooms.py"))
