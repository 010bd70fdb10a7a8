"""Names are found in sources as Python would find them, and so is everybody else who touches them."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mindspeed_vita.integration.patching.ledger import Upstream
from mindspeed_vita.integration.patching.sources import stated_version
from patches.tool.checkout import Checkouts
from tests.unit.integration.patching.made_up import write

UPSTREAMS = [Upstream(project=name.title(), package=name, version_file="setup.py") for name in ("mega", "speed")]
FILES = {
    "Mega/setup.py": "__version__ = '1.2'\n",
    "Mega/mega/core/work.py": '''
        """Work."""
        import sys

        def step(model, *, count: int = 1):
            """Takes a step."""
            return model

        if sys.platform == "linux":
            def low(a): ...
        else:
            def high(a, b): ...

        try:
            import fast
        except ImportError:
            def slow(a=None): ...

        class Loop:
            """A loop."""
            def __init__(self, steps): ...

            @staticmethod
            def name(prefix=""): ...

        class Bare: ...
    ''',
    "Mega/mega/core/__init__.py": "from .work import step as take_step, Loop\nfrom mega.core import work\n",
    "Mega/mega/round.py": "from mega.square import thing\n",
    "Mega/mega/square.py": "from mega.round import thing\n",
    "Speed/speed/features.py": '''
        class Feature:
            def register(self, manager, flags):
                from speed.faster import step_wrapper as quick
                from speed import faster
                manager.register_patch("mega.core.work.step", quick)
                manager.register_patch("mega.core.work.step", faster.Better.step, force_patch=True)
                for target, function in [("mega.core.work.step", faster.step)]:
                    manager.register_patch(target, function)
                manager.register_patch("mega.core.work.Loop.name", lambda prefix: prefix)
    ''',
    "Speed/speed/faster.py": '''
        from mega.core.work import step as old_step

        def step(model): ...

        def step_wrapper(original): ...

        class Better:
            def step(self, model): ...
    ''',
    "Speed/speed/direct.py": '''
        import mega.core.work
        from mega.core import work
        from speed.faster import Better

        if True:
            work.Loop.run = Better

        def install(manager):
            mega.core.work.Loop.run = manager.better
            work.run = Better
    ''',
    "Speed/speed/late.py": '''
        def run():
            from mega.core.work import step
            return step
    ''',
}


@pytest.fixture
def sources(tmp_path: Path) -> Checkouts:
    write(tmp_path, FILES)
    return Checkouts.in_folders([tmp_path], UPSTREAMS)


@pytest.mark.parametrize(
    "asked, name, signature",
    [
        ("mega.core.work.step", "mega.core.work.step", "(model, *, count=1)"),
        ("mega.core.take_step", "mega.core.work.step", "(model, *, count=1)"),
        ("mega.core.Loop.name", "mega.core.work.Loop.name", "(prefix='')"),
        ("mega.core.work.Loop", "mega.core.work.Loop", "(self, steps)"),
        ("mega.core.work.Bare", "mega.core.work.Bare", None),
        ("mega.core.work.low", "mega.core.work.low", "(a)"),
        ("mega.core.work.high", "mega.core.work.high", "(a, b)"),
        ("mega.core.work.slow", "mega.core.work.slow", "(a=None)"),
    ],
)
def test_definitions_are_found(sources, asked, name, signature):
    found = sources.find(asked)
    assert (found.name, found.signature, found.project, found.file) == (name, signature, "Mega", "mega/core/work.py")
    assert found.kind == ("class" if name.endswith(("Loop", "Bare")) else "function")


@pytest.mark.parametrize(
    "asked", ["mega.core.work.gone", "mega.core.work.Loop.gone", "mega.gone.step", "nothing.at.all", "mega.round.thing"]
)
def test_what_is_not_there_is_not_found(sources, asked):
    assert sources.find(asked) is None


def test_the_digest_is_of_the_lines_alone(tmp_path: Path):
    write(tmp_path, FILES)
    first = Checkouts.in_folders([tmp_path], UPSTREAMS).find("mega.core.work.step")
    path = tmp_path / "Mega/mega/core/work.py"
    text = path.read_text(encoding="utf-8")
    path.write_text("# moved down\n" + text.replace("return model\n", "return model   \n"), encoding="utf-8")
    assert Checkouts.in_folders([tmp_path], UPSTREAMS).find("mega.core.work.step") == first
    path.write_text(text.replace("return model\n", "return None\n"), encoding="utf-8")
    changed = Checkouts.in_folders([tmp_path], UPSTREAMS).find("mega.core.work.step")
    assert changed != first and replace(changed, source=first.source) == first


def test_registered_patches_are_named_by_what_they_put_there(sources):
    assert {mention.name for mention in sources.patches("mega.core.work.step")} == {
        "speed.faster.step_wrapper",
        "speed.faster.Better.step",
        "speed.faster.step",
    }
    assert [mention.name for mention in sources.patches("mega.core.work.Loop.name")] == ["lambda prefix: prefix"]
    assert [mention.name for mention in sources.patches("mega.core.work.Loop.run")] == ["manager.better", "speed.faster.Better"]


def test_imports_that_bind_a_name_are_told_from_late_ones(sources):
    found = {(mention.file, mention.name) for mention in sources.imports("mega.core.work.step")}
    assert found == {("mega/core/__init__.py", "take_step"), ("speed/faster.py", "old_step")}


def test_versions_and_commits(sources, tmp_path):
    assert sources.version("Mega") == "1.2" and sources.version("Speed") is None
    assert sources.commit("Mega") == (None, None)
    settings = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    for command in (["init", "-q", "-b", "line"], ["add", "."], [*settings, "commit", "-qm", "m"]):
        subprocess.run(["git", *command], cwd=tmp_path / "Mega", check=True)
    branch, commit = sources.commit("Mega")
    assert branch == "line" and len(commit) == 40
    assert stated_version("MAJOR = 0\nMINOR = 12\nPATCH = 1\n__version__ = '.'.join(map(str, VERSION))\n") == "0.12.1"
    assert stated_version("nothing") is None


def test_a_checkout_that_is_not_there_is_refused(tmp_path: Path):
    write(tmp_path, {"Mega/mega/x.py": ""})
    with pytest.raises(ValueError, match="no checkout of Speed in .*expected a folder with speed/ in it"):
        Checkouts.in_folders([tmp_path], UPSTREAMS)
    with pytest.raises(ValueError, match="no folder .*nowhere; expected one with Mega, Speed in it"):
        Checkouts.in_folders([tmp_path / "nowhere"], UPSTREAMS)


def test_a_package_copied_into_another_checkout_is_found_and_the_first_folder_counts(tmp_path: Path):
    write(tmp_path, {"a/Speed/speed/x.py": "", "a/Speed/mega/x.py": "def f(): ...", "b/Mega/mega/x.py": "def f(b): ..."})
    assert Checkouts.in_folders([tmp_path / "a"], UPSTREAMS).find("mega.x.f").signature == "()"
    assert Checkouts.in_folders([tmp_path / "a", tmp_path / "b"], UPSTREAMS).find("mega.x.f").signature == "(b)"
    assert Checkouts.in_folders([tmp_path / "b" / "Mega", tmp_path / "a"], UPSTREAMS).find("mega.x.f").signature == "(b)"


def test_installed_packages_are_found_without_an_import(packages):
    packages({"fakemega/x.py": "raise RuntimeError('imported')\ndef f(a): ..."})
    upstreams = [Upstream(project="Fake", package="fakemega", version_file="setup.py")]
    assert Checkouts.installed(upstreams).find("fakemega.x.f").signature == "(a)"
    with pytest.raises(ValueError, match="Speed not installed, so nothing can be verified here; give checkouts: --upstream FOLDER"):
        Checkouts.installed([*upstreams, replace(UPSTREAMS[1], package="no_such_package_anywhere")])
