"""Writes docs/recipe_keys.md from the JSON schema of a recipe (`vita schema`).

    python scripts/recipe_page.py           # after a change of a key, its type or its documentation
    python scripts/recipe_page.py --check   # exit status 1 where the page is out of date
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from pages import ROOT, write_or_check
from project_environment import packages_needed

with packages_needed():
    from mindspeed_vita.config.schema import recipe_schema

HEADER = """# Every key of a recipe

Made from `vita schema` by `python scripts/recipe_page.py`; do not edit it here. The texts come from
[recipe.py](../mindspeed_vita/config/recipe.py) and [model.py](../mindspeed_vita/config/model.py). `vita train` and `vita check` refuse all
values that the table does not allow.

A later one of these wins: the default in the table, the default of the decoder's family, of the stage, of the model's preset, the recipe,
the command line (`train.lr=1e-4`). `${VARIABLE}` and `${VARIABLE:-default}` may stand in every value.

## In an editor

`vita schema > recipe.schema.json` writes a file with which VS Code's YAML extension (redhat.vscode-yaml) completes and checks recipes.
If the schema lies next to a recipe, begin the recipe with `# yaml-language-server: $schema=recipe.schema.json`; the path is relative
to the recipe. Or set `"yaml.schemas": {"recipe.schema.json": "recipes/*.yaml"}`.
"""
_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most", "exclusiveMaximum": "less than"}
_TYPES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}


def page() -> str:
    """The page in Markdown."""
    schema = recipe_schema()
    lines = [HEADER]
    for prefix, section in sections(schema, schema, ""):
        lines += [f"## {prefix.rstrip('.') or 'The recipe itself'}", "", section["description"], ""]
        lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
        for name, key in section["properties"].items():
            if "$ref" not in key:
                cells = (f"`{prefix}{name}`", value(key), default(key), key["description"])
                lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def sections(section: dict[str, Any], schema: dict[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what its keys begin with, schema) of every section that has keys of its own."""
    if any("$ref" not in key for key in section["properties"].values()):
        yield prefix, section
    for name, key in section["properties"].items():
        if "$ref" in key:
            yield from sections(schema["$defs"][key["$ref"].rpartition("/")[2]], schema, f"{prefix}{name}.")


def value(key: dict[str, Any]) -> str:
    """What a key may be. Other ways to write the same value (text of digits, a variable) are left out."""
    ways = key.get("anyOf", [key])
    first = ways[0]
    if "anyOf" in first:
        return value(first)
    if "enum" in first:
        names = ", ".join(f"`{name}`" if name != "" else "empty" for name in first["enum"])
        return f"{names}, or a plugin's" if any(isinstance(way.get("type"), list) for way in ways) else names
    if first.get("type") == "array":
        return f"list: {value(first['items'])}"
    types = first["type"] if isinstance(first["type"], str) else first["type"][0]
    bounds = [f"{words} {first[bound]:.12g}" for bound, words in _BOUNDS.items() if bound in first]
    return ", ".join([_TYPES[types], " and ".join(bounds)] if bounds else [_TYPES[types]])


def default(key: dict[str, Any]) -> str:
    """Its default, as it is written in YAML."""
    found = key["default"]
    if found in ("", [], None):
        return "empty"
    return f"`{', '.join(map(str, found))}`" if isinstance(found, list) else f"`{found if isinstance(found, str) else json.dumps(found)}`"


if __name__ == "__main__":
    sys.exit(write_or_check(ROOT / "docs" / "recipe_keys.md", page, "recipe_page.py"))
