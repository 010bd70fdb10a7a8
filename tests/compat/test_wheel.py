"""The built wheel alone, installed in an empty folder: everything is inside, and the commands work from an empty working directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from mindspeed_vita.checkpoint.hf.export import CODE_FILES
from mindspeed_vita.config import recipe_to_dict
from tests.tiny_data import TinyData, read_metrics

ROOT = Path(__file__).resolve().parents[2]
BUILT_FROM = ("mindspeed_vita", "patches", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "requirements.txt")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in a copy of the sources: setuptools writes beside them."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "sources").mkdir()
    for name in BUILT_FROM:
        source, target = ROOT / name, folder / "sources" / name
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__")) if source.is_dir() else shutil.copy(source, target)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "sources"))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel and nothing else; what it requires comes from this Python."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    return folder


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    sources = [path for path in (ROOT / "mindspeed_vita").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert not {path.relative_to(ROOT).as_posix() for path in sources} - inside
    ledger = [path for kind in ("*.toml", "*.md", "*.json") for path in (ROOT / "patches").rglob(kind)]
    assert not {f"mindspeed_vita/{path.relative_to(ROOT).as_posix()}" for path in ledger} - inside
    assert len(sources) > 150 and len(ledger) > 2
    assert not [name for name in inside if "patches/tool" in name], "the developer's tool belongs to the source tree"


def test_the_ledger_is_listed_and_the_developers_tool_says_that_it_needs_a_source_tree(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, str(installed / "bin" / "vita"), "patches"]
    listed, verified = (
        subprocess.run([*command, action], cwd=tmp_path, env=environment, capture_output=True, text=True) for action in ("list", "verify")
    )
    assert listed.returncode == 0 and str(installed / "mindspeed_vita" / "patches" / "manifest.toml") in listed.stdout
    assert verified.returncode == 2 and not verified.stdout
    assert f"is a tool of the source tree, and this installation in {installed / 'mindspeed_vita'} has none" in verified.stderr
    assert "run it in a clone of the repository" in verified.stderr


@pytest.mark.slow
def test_commands_work_from_an_empty_working_directory(installed: Path, tiny: TinyData, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_to_dict(tiny.recipe(Path("run"), data={"index": "index"}))))
    work = tmp_path / "work"
    work.mkdir()

    def vita(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
        # the command as pip made it
        command = [sys.executable, str(installed / "bin" / "vita"), *arguments]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "import mindspeed_vita; print(mindspeed_vita.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    found = subprocess.run([sys.executable, "-c", where], cwd=work, env=environment, capture_output=True, text=True).stdout
    assert found.startswith(str(installed)), "the checkout was imported instead"
    assert json.loads(vita("doctor", "--json"))["ok"]
    assert "3 steps" in vita("train", str(recipe), "train.steps=3")
    assert len(read_metrics(work / "run")) == 3
    assert "parameters, float32" in vita("convert", "--from", "run", "--to", "hf", "--output", "export")
    assert all((work / "export" / name).is_file() for name in CODE_FILES)
    question = ("--prompt", "Colour?", "--image", str(tiny.folder / "red0.png"), "--max-new-tokens", "3")
    assert vita("generate", "run", *question) == vita("generate", "export", *question)
    assert sorted(path.name for path in work.iterdir()) == ["export", "index", "run"]
