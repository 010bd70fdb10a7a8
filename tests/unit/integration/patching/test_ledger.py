"""The project's own ledger is sound, agrees with its tables, and a wrong manifest is refused with what to change."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from mindspeed_vita.integration.patching import live, load_ledger, signatures
from mindspeed_vita.integration.patching.ledger import MOST_PATCHES
from mindspeed_vita.integration.patching.starting import read_table

ROOT = Path(__file__).resolve().parents[4]
LEDGER = load_ledger()
TABLES = {path.stem: read_table(path) for path in LEDGER.tables}

UPSTREAM = """
format = 1
[[upstream]]
project = "Mega"
package = "mega"
version_file = "setup.py"
"""
PATCH = """
[[patch]]
name = "step"
target = "mega.step"
replacement = "mindspeed_vita.integration.there.step_wrapper"
kind = "wrap"
upstream = "Mega"
versions = ["1"]
signature = "(a)"
why = "w"
until = "u"
test = "t"
"""
REBOUND = """
[[rebound]]
by = "mindspeed_vita.there.set"
targets = ["torch.x"]
when = "w"
why = "y"
until = "u"
"""


def load(folder: Path, text: str):
    (folder / "manifest.toml").write_text(text, encoding="utf-8")
    return load_ledger(folder)


def test_there_are_few_patches_and_each_says_why_and_until_when():
    assert 1 <= len(LEDGER.patches) <= MOST_PATCHES
    for patch in LEDGER.patches:
        assert min(len(patch.why), len(patch.until)) > 40


@pytest.mark.parametrize("patch", LEDGER.patches, ids=lambda patch: patch.name)
def test_every_replacement_is_a_function_of_ours(patch):
    replacement = live.locate(patch.replacement).value
    assert callable(replacement) and replacement.__doc__
    if patch.kind == "wrap":
        assert len(inspect.signature(replacement).parameters) == 1


@pytest.mark.parametrize("patch", LEDGER.patches, ids=lambda patch: patch.name)
def test_every_patch_names_a_test_that_exists(patch):
    path, _, name = patch.test.partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert not name or name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_import_from_the_training_frameworks_is_a_seam():
    named = [entry.target for entry in (*LEDGER.seams, *LEDGER.patches)]
    imported = set()
    for path in (ROOT / "mindspeed_vita" / "integration" / "mindspeed_llm").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(("mindspeed.", "mindspeed_llm.", "megatron.training.")):
                imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert imported
    # of a class, the method that matters is named
    assert not {name for name in imported if not any(target == name or target.startswith(f"{name}.") for target in named)}


def test_both_version_sets_have_a_table_with_commits():
    assert {"26.1.0", "master-2026-08"} <= {table["name"] for table in TABLES.values()}
    for table in TABLES.values():
        assert all(len(entry["commit"]) == 40 for entry in table["projects"].values())


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_ledger_and_table_agree(table):
    assert set(table["patches"]) == {patch.target for patch in LEDGER.patches}
    assert set(table["seams"]) == {seam.target for seam in LEDGER.seams}
    for patch in LEDGER.patches:
        entry = table["patches"][patch.target]
        assert entry["definition"]["name"] == patch.definition
        assert signatures.difference(patch.signature, entry["definition"]["signature"]) is None
        assert {mention["name"] for mention in entry["patched_upstream"]} <= {declared.by for declared in patch.patched_upstream}
    for seam in LEDGER.seams:
        assert signatures.difference(seam.signature, table["seams"][seam.target]["definition"]["signature"]) is None


@pytest.mark.parametrize(
    "text, said",
    [
        ("format = ", "Invalid value"),
        ("format = 2", "expected format 1"),
        (UPSTREAM + "[[pach]]\nname = 'x'", r"tables \['pach'\]"),
        (UPSTREAM + PATCH.replace("why", "wy"), r"patch step: unknown keys \['wy'\], missing keys \['why'\]"),
        (UPSTREAM + PATCH.replace('"w"', '" "'), "patch step: why is ' '; expected text"),
        (UPSTREAM + PATCH.replace('"wrap"', '"swap"'), "kind 'swap'; expected wrap or replace"),
        (UPSTREAM + PATCH.replace('"wrap"', '"replace"'), "only wrappers' names end in wrapper"),
        (UPSTREAM + PATCH.replace("step_wrapper", "step"), "wrap by .*there.step; only wrappers' names end in"),
        (UPSTREAM + PATCH.replace("mindspeed_vita.integration", "somewhere"), "expected a function in mindspeed_vita.integration"),
        (UPSTREAM + PATCH.replace('"Mega"', '"Giga"'), r"upstream 'Giga'; expected one of \['Mega'\]"),
        (UPSTREAM + PATCH.replace('"(a)"', '"a"'), "'a' is no signature"),
        (UPSTREAM + 'versions = ["1", "2"]' + PATCH, r"Mega \['2'\] is supported, but not among the patch's versions"),
        (UPSTREAM + PATCH + PATCH, "two patches with name step; two patches with target mega.step"),
        (UPSTREAM + "".join(PATCH.replace("step", f"step{n}") for n in range(9)), "9 patches; at most 8"),
        (UPSTREAM + REBOUND.replace("why", "wy"), r"rebound mindspeed_vita.there.set: unknown keys \['wy'\], missing keys \['why'\]"),
        (UPSTREAM + REBOUND + REBOUND, "two entries rebind torch.x"),
        (UPSTREAM + PATCH + "[[patch.patched_upstream]]\nby = 'x.y'", r"missing keys \['when'\]"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path: Path, text: str, said: str):
    with pytest.raises(ValueError, match=said):
        load(tmp_path, text)


def test_a_right_manifest_is_read(tmp_path: Path):
    (found,) = load(tmp_path, UPSTREAM + PATCH + "[[patch.patched_upstream]]\nby = 'speed.other'\nwhen = '--other'").patches
    assert (found.name, found.versions, found.definition) == ("step", ("1",), "mega.step")
    assert [(declared.by, declared.when) for declared in found.patched_upstream] == [("speed.other", "--other")]


def test_a_broken_table_says_how_to_make_it_again(tmp_path: Path):
    (tmp_path / "t.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="write it again with `vita patches table"):
        read_table(tmp_path / "t.json")
    (tmp_path / "t.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="expected a table of format 2"):
        read_table(tmp_path / "t.json")
