"""The JSON schema says of a recipe what the loader says of it, and the page of keys is made from it."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from mindspeed_vita.cli.main import main
from mindspeed_vita.config import Recipe, load_yaml
from mindspeed_vita.config.aliases import _keys
from mindspeed_vita.config.schema import recipe_schema

from .test_written import REFUSED, ROWS, named, nested

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = sorted(path for path in ROOT.glob("examples/*/*.yaml") if path.parent.name != "mixtures" and path.name != "pipeline.yaml")
IN_FILES = [row for row in ROWS if not isinstance(row[1], (tuple, set, bytes, complex, datetime.date))]
# The loader refuses these and the schema does not: it knows no environment, no plugins, and nothing of what text is split into.
LOOSER = {
    "train.seed": ("${VITA_NONE}", "${VITA_EMPTY}", "3\n"),  # Python's $ matches before a last line break, an editor's does not
    "model.language.rope_base": ("${VITA_SEVEN}",),
    "data.mixture": ("${VITA_NONE}",),
    "model.language.rope_scaling.short_factor": ("1, 2",),
    "train.modules": ("", "vision;projector"),
    "plugins": (["no.such.module"],),
    "model.preset": ("9b", 7, None),
    "model.language.family": ("qwen9", 3),
}
# And the other way round: the schema asks for the usual way to write it.
STRICTER = {"stage": ("2",), "model.vision.preset": (None,)}


@pytest.fixture(scope="module")
def schema() -> Draft7Validator:
    made = recipe_schema()
    Draft7Validator.check_schema(made)
    return Draft7Validator(made)


@pytest.mark.parametrize(("key", "written", "read"), IN_FILES, ids=named)
def test_the_schema_and_the_loader_agree(schema: Draft7Validator, key: str, written: Any, read: Any) -> None:
    expected = read is not REFUSED
    if written in (*LOOSER.get(key, ()), *STRICTER.get(key, ())):
        expected = not expected
    assert schema.is_valid(nested(key, written)) == expected


@pytest.mark.parametrize("recipe", EXAMPLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_examples_satisfy_the_schema(schema: Draft7Validator, recipe: Path) -> None:
    assert [error.message for error in schema.iter_errors(load_yaml(recipe.read_text(encoding="utf-8")))] == []


def test_the_command_prints_the_schema_with_every_key_documented(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == recipe_schema()
    keys = dict(properties(printed, printed, ""))
    assert list(keys) == list(_keys(Recipe, ""))
    for key, content in keys.items():
        assert content["description"] and "default" in content, key
        for value in next((way["enum"] for way in content.get("anyOf", []) if "enum" in way), []):
            # presets and stages have tables of their own
            assert key in ("model.preset", "stage") or re.search(rf"\b{value}\b", content["description"]), f"{key} does not explain {value}"


def properties(section: dict[str, Any], whole: dict[str, Any], prefix: str) -> Any:
    assert section["additionalProperties"] is False
    for name, content in section["properties"].items():
        if "$ref" in content:
            yield from properties(whole["$defs"][content["$ref"].rpartition("/")[2]], whole, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", content


def test_the_page_of_keys_is_that_of_the_schema() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "recipe_page.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
