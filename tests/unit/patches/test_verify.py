"""Sources that no longer fit the ledger are found out unimported; the real ones fit, and their tables come out the same again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mindspeed_vita.cli import main as cli
from mindspeed_vita.cli import patches
from mindspeed_vita.integration.patching import load_ledger
from mindspeed_vita.integration.patching.ledger import Declared, Ledger, Seam, Upstream
from mindspeed_vita.integration.patching.starting import read_table
from patches.tool.checkout import Checkouts
from patches.tool.tables import build_table, table_text
from patches.tool.verify import Verification, verify
from tests.unit.integration.patching.made_up import ledger, patch, write

FILES = {
    "fakemega/train.py": "def step(model, count=1):\n    return model\n",
    "fakespeed/features.py": """
        def register(manager):
            from fakespeed.faster import step
            manager.register_patch('fakemega.train.step', step)
    """,
    "fakespeed/faster.py": "def step(model, count=1): ...\n",
    "setup.py": "__version__ = '1.0'\n",
}
ALWAYS = Declared(by="fakespeed.faster.step", when="always")
PATCH = patch(patched_upstream=(ALWAYS,))
SEAM = Seam(target="fakespeed.faster.step", upstream="fakespeed", signature="(model, count=1)", use="as it is")
UPSTREAMS = tuple(Upstream(project=name, package=name, version_file="setup.py", versions=("1.0",)) for name in ("fakemega", "fakespeed"))


@pytest.fixture
def book(tmp_path: Path):
    """A ledger with a table of the files as they are."""
    (tmp_path / "book" / "signatures").mkdir(parents=True)
    write(tmp_path / "sources", FILES)
    made = ledger(PATCH, folder=tmp_path / "book", seams=(SEAM,), upstreams=UPSTREAMS)
    table = build_table(made, Checkouts.in_folders([tmp_path / "sources"], UPSTREAMS), "as it is")
    (tmp_path / "book" / "signatures" / "now.json").write_text(table_text(table), encoding="utf-8")
    return made


def problems(book, tmp_path: Path, changes: dict[str, str] | None = None) -> list[str]:
    write(tmp_path / "sources", changes or {})
    return verified(book, tmp_path).problems


def verified(book: Ledger, tmp_path: Path) -> Verification:
    return verify(book, Checkouts.in_folders([tmp_path / "sources"], UPSTREAMS))


def test_what_fits_has_no_problems_and_names_its_table(book, tmp_path):
    report = verified(book, tmp_path)
    assert not report.problems and report.table == "as it is" and not report.changed
    assert [(finding.part, finding.target) for finding in report.findings] == [
        ("upstream", "fakemega"),
        ("upstream", "fakespeed"),
        ("patch", "fakemega.train.step"),
        ("seam", "fakespeed.faster.step"),
    ]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"fakemega/train.py": "x = 1"}, "fakemega.train.step: moved or went"),
        (
            {"fakemega/train.py": "def step(model): ..."},
            "fakemega.train.step: signature (model), expected (model, count=1): 'count' is gone",
        ),
        (
            {"fakemega/train.py": "from fakemega.inner import step", "fakemega/inner.py": "def step(model, count=1): ..."},
            "fakemega.train.step: is defined as fakemega.inner.step, not fakemega.train.step; name the new place under `defined`",
        ),
        (
            {"fakespeed/more.py": "def f(m):\n    m.register_patch('fakemega.train.step', mine)\ndef mine(): ..."},
            "fakespeed/more.py patches it with mine, which the ledger does not know; read it and declare it under patched_upstream",
        ),
        ({"fakespeed/features.py": ""}, "nothing registers fakespeed.faster.step any more; take the declaration out"),
        (
            {"fakespeed/holder.py": "from fakemega.train import step as take"},
            "fakespeed/holder.py imports it as take and may keep the old function; import that module after the patches",
        ),
        ({"fakespeed/faster.py": "def step(model, number): ..."}, "fakespeed.faster.step: signature (model, number), expected"),
        ({"setup.py": "__version__ = '2.0'"}, "fakemega: version 2.0; check out 1.0"),
    ],
)
def test_what_does_not_fit_is_named_with_its_remedy(book, tmp_path, changes, said):
    found = problems(book, tmp_path, changes)
    assert any(said in problem for problem in found), found


def test_an_unstated_version_is_no_problem(book, tmp_path):
    assert not problems(book, tmp_path, {"setup.py": ""})


def test_a_declaration_behind_a_flag_may_be_absent(book, tmp_path):
    by_flag = replace(book, patches=(patch(patched_upstream=(replace(ALWAYS, when="--fast"),)),))
    assert not problems(by_flag, tmp_path, {"fakespeed/features.py": ""})


def test_changed_lines_behind_the_same_signature_are_told(book, tmp_path):
    write(tmp_path / "sources", {"fakemega/train.py": "def step(model, count=1):\n    return None\n"})
    report = verified(book, tmp_path)
    assert not report.problems and report.changed == ("fakemega.train.step",)


def test_the_command_lists_and_refuses(capsys, tmp_path):
    assert cli.main(["patches", "list"]) == 0
    listed = " ".join(capsys.readouterr().out.split())
    assert all(entry.target in listed and entry.replacement in listed for entry in load_ledger().patches)
    assert all(name in listed for entry in load_ledger().rebound for name in (entry.by, *entry.targets))
    assert cli.main(["patches", "list", "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in parts["patches"]] == [entry.name for entry in load_ledger().patches]
    assert [entry["by"] for entry in parts["rebound"]] == [entry.by for entry in load_ledger().rebound]
    assert cli.main(["patches", "verify", "--upstream", str(tmp_path)]) == 2
    assert "no checkout of Megatron-LM in" in capsys.readouterr().err


def test_without_the_source_tree_the_tool_is_refused_and_the_list_works(capsys, tmp_path, monkeypatch):
    shutil.copy(load_ledger().folder / "manifest.toml", tmp_path)
    monkeypatch.setattr(patches, "load_ledger", lambda: load_ledger(tmp_path))
    for action in ("verify", "table"):
        assert cli.main(["patches", action]) == 2
        said = capsys.readouterr().err
        assert f"`vita patches {action}` is a tool of the source tree, and this installation in {tmp_path.parent} has none" in said
        assert "run it in a clone of the repository, after `pip install -e .` there" in said
    assert cli.main(["patches", "list"]) == 0


def test_the_tool_works_from_any_folder(tmp_path):
    command = [sys.executable, "-m", "mindspeed_vita.cli.main", "patches", "verify", "--upstream", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(load_ledger().folder.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "no checkout of Megatron-LM in" in done.stderr


# what follows needs the real sources


def copy_with(folder: Path, tmp_path: Path, changes: dict[str, tuple[str, str]]) -> Path:
    """The checkouts, by links, but for some files in which a text is replaced."""
    parts = ("Megatron-LM/megatron", "MindSpeed/mindspeed", "MindSpeed/setup.py", "MindSpeed-LLM/mindspeed_llm", "MindSpeed-LLM/setup.py")
    for part in parts:
        (tmp_path / part).parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-rs", str((folder / part).resolve()), str(tmp_path / part)], check=True)
    for name, (before, after) in changes.items():
        text = (folder / name).read_text(encoding="utf-8")
        assert before in text
        (tmp_path / name).unlink()
        (tmp_path / name).write_text(text.replace(before, after), encoding="utf-8")
    return tmp_path


def test_the_real_sources_fit(upstream_folder, capsys):
    assert cli.main(["patches", "verify", "--upstream", str(upstream_folder)]) == 0
    assert "PASS: the ledger fits" in capsys.readouterr().out


def test_verifying_the_real_sources_imports_none_of_them(upstream_folder):
    code = (
        "import sys; from mindspeed_vita.cli.main import main\n"
        f"status = main(['patches', 'verify', '--json', '--upstream', {str(upstream_folder)!r}])\n"
        "assert not {'torch', 'torch_npu', 'megatron', 'mindspeed', 'mindspeed_llm'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["problems"] == []


def test_the_tables_come_out_the_same_again(upstream_folder, tmp_path):
    book = load_ledger()
    sources = Checkouts.in_folders([upstream_folder], book.upstreams)
    tables = {path: read_table(path) for path in book.tables}
    same = {
        path: table
        for path, table in tables.items()
        if all(sources.commit(project)[1] == entry["commit"] for project, entry in table["projects"].items())
    }
    if not same:
        pytest.skip("the checkouts in VITA_UPSTREAM are at none of the tables' commits")
    for path, table in same.items():
        made = tmp_path / path.name
        assert cli.main(["patches", "table", "--upstream", str(upstream_folder), "--name", table["name"], "--output", str(made)]) == 0
        assert made.read_text(encoding="utf-8") == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name, before, after, said",
    [
        ("Megatron-LM/megatron/core/optimizer/__init__.py", "    lr_mult: float,\n    lr: float,", "    lr: float,", "'lr_mult' is gone"),
        ("Megatron-LM/megatron/core/optimizer/__init__.py", "def _get_param_groups(", "def _make_param_groups(", "moved or went"),
        ("Megatron-LM/megatron/core/package_info.py", "MINOR = 12", "MINOR = 14", "Megatron-LM 0.14.1 version 0.14.1; check out 0.12.1"),
        (
            "MindSpeed-LLM/mindspeed_llm/features_manager/common/training.py",
            "'megatron.training.training.train', train",
            "'megatron.core.optimizer._get_param_groups', train",
            "patches it with mindspeed_llm.training.training.train, which the ledger does not know",
        ),
        (
            "MindSpeed-LLM/mindspeed_llm/training/training.py",
            "    train_step, calc",
            "    train_step as one_step, calc",
            "imports it as one_step",
        ),
    ],
)
def test_a_change_in_the_real_sources_is_found_out(upstream_folder, tmp_path, capsys, name, before, after, said):
    copied = copy_with(upstream_folder, tmp_path, {name: (before, after)})
    assert cli.main(["patches", "verify", "--upstream", str(copied)]) == 1
    assert said in " ".join(capsys.readouterr().out.split())
