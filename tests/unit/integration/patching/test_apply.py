"""Patches are applied all or none: every refusal, what it says, and that nothing has changed after it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from mindspeed_vita.integration.patching import apply_ledger
from mindspeed_vita.integration.patching.ledger import Declared, Upstream
from mindspeed_vita.integration.patching.starting import unknown_commits
from tests.attributes import difference, snapshot
from tests.unit.integration.patching.made_up import MADE_UP, ledger, patch

MEGA = {
    "fakemega/train.py": """
        from fakemega.loading import load

        def step(model, count=1):
            return ["upstream", model, count]

        def other(model):
            return "other"

        class Loop:
            def run(self, steps):
                return "loop"

            @staticmethod
            def name(prefix):
                return prefix
    """,
    "fakemega/loading.py": "def load(path): return path",
    "fakemega/caller.py": """
        from fakemega.train import step

        def call():
            return step("m", count=2)
    """,
    "fakeours.py": """
        import functools

        def step_wrapper(original):
            @functools.wraps(original)
            def wrapper(*args, **kwargs):
                return ["ours", *original(*args, **kwargs)]
            return wrapper

        def other(model):
            return "ours"

        def run_wrapper(original):
            def wrapper(self, steps):
                return "our " + original(self, steps)
            return wrapper

        def name_wrapper(original):
            def wrapper(prefix):
                return "our " + original(prefix)
            return wrapper
    """,
    # the patch manager's rules, and two patches of the other upstream's
    "fakespeed/manager.py": """
        import functools
        import importlib

        def first_wrapper(original):
            @functools.wraps(original)
            def wrapper(*args, **kwargs):
                return ["first", *original(*args, **kwargs)]
            return wrapper

        def step(model, count=1):
            return ["replaced", model, count]
    """,
}
OTHER = patch(name="other", target="fakemega.train.other", replacement="fakeours.other", kind="replace", signature="(model)")


@pytest.fixture
def mega(packages):
    packages(MEGA)
    importlib.import_module("fakemega.caller")
    return importlib.import_module("fakemega.train")


def refused(*patches, **more) -> str:
    """The message of a refusal, after which nothing is different."""
    before = snapshot(MADE_UP)
    with pytest.raises(ValueError) as raised:
        apply_ledger(ledger=ledger(*patches, **more))
    assert not difference(before, snapshot(MADE_UP))
    return str(raised.value)


def test_a_wrapper_and_a_replacement_take_effect_wherever_the_name_was_imported(mega):
    before = snapshot(MADE_UP)
    applied = apply_ledger(ledger=ledger(patch(), OTHER))
    assert sys.modules["fakemega.caller"].call() == ["ours", "upstream", "m", 2]
    assert mega.other(None) == "ours"
    assert [(each.name, each.over) for each in applied] == [("step", ("fakemega.train.step",)), ("other", ("fakemega.train.other",))]
    changed = [change.name for change in difference(before, snapshot(MADE_UP))]
    assert changed == ["fakemega.caller.step", "fakemega.train.other", "fakemega.train.step"]


def test_methods_and_static_methods_are_patched_in_their_class(mega):
    run = patch(name="run", target="fakemega.train.Loop.run", replacement="fakeours.run_wrapper", signature="(self, steps)")
    name = patch(name="name", target="fakemega.train.Loop.name", replacement="fakeours.name_wrapper", signature="(prefix)")
    apply_ledger(ledger=ledger(run, name))
    assert mega.Loop().run(1) == "our loop"
    assert mega.Loop.name("x") == mega.Loop().name("x") == "our x"


def test_twice_is_once(mega):
    apply_ledger(ledger=ledger(patch(), OTHER))
    before = snapshot(MADE_UP)
    again = apply_ledger(ledger=ledger(patch(), OTHER))
    assert [(each.name, each.over) for each in again] == [("step", ("fakemega.train.step",)), ("other", ())]
    assert not difference(before, snapshot(MADE_UP))


def test_a_target_imported_from_elsewhere_is_known_by_its_definition(mega):
    load = patch(target="fakemega.train.load", replacement="fakeours.step_wrapper", signature="(path)", defined="fakemega.loading.load")
    assert "already patched by fakemega.loading.load" in refused(replace(load, defined=None))
    apply_ledger(ledger=ledger(load))
    assert mega.load("x") == ["ours", "x"]


@pytest.mark.parametrize(
    "target, said",
    [
        ("nomega.train.step", "nomega is not installed"),
        ("fakemega.gone.step", "fakemega has no gone"),
        ("fakemega.train.gone", "fakemega.train has no gone"),
        ("fakemega.train.Loop.gone", "fakemega.train.Loop has no gone"),
    ],
)
def test_a_missing_target_is_refused(mega, target, said):
    message = refused(patch(target=target), OTHER)
    assert said in message
    assert "install fakemega 1.0, or write fakeours.step_wrapper and its ledger entry anew" in message


def test_none_in_place_of_a_function_is_a_missing_target(mega):
    mega.renamed = None
    assert "fakemega.train.renamed is None, nothing that can be called" in refused(patch(target="fakemega.train.renamed"))


def test_an_import_that_fails_further_down_says_what_is_missing(packages):
    packages({**MEGA, "fakemega/needy.py": "import a_module_nobody_has\ndef step(model, count=1): pass"})
    assert "fakemega.needy cannot be imported: No module named 'a_module_nobody_has'" in refused(patch(target="fakemega.needy.step"))


def test_a_changed_signature_is_refused(mega):
    message = refused(patch(signature="(model, number=1)"))
    assert "fakemega.train.step has signature (model, count=1), expected (model, number=1): 'number' is gone; 'count' is new" in message


@pytest.mark.parametrize("kind", ["wrapper", "replacement"])
def test_an_undeclared_patch_is_refused_and_a_declared_one_lies_below(mega, kind):
    speed = importlib.import_module("fakespeed.manager")
    by = "fakespeed.manager.first_wrapper" if kind == "wrapper" else "fakespeed.manager.step"
    mega.step = speed.first_wrapper(mega.step) if kind == "wrapper" else speed.step
    sys.modules["fakemega.caller"].step = mega.step
    if kind == "replacement":
        # the engine's own name for it is all that tells a stranger's function
        del speed.step
    message = refused(patch())
    assert f"fakemega.train.step is already patched by {by}, which the ledger does not know" in message
    assert "switch that patch off, or read it and declare it under patched_upstream of 'step'" in message
    applied = apply_ledger(ledger=ledger(patch(patched_upstream=(Declared(by=by, when="--flag"),))))
    assert applied[0].over[0] == by
    assert sys.modules["fakemega.caller"].call()[:2] == ["ours", "first" if kind == "wrapper" else "replaced"]


def test_a_patch_that_should_be_there_and_is_not_is_refused(mega):
    always = patch(patched_upstream=(Declared(by="fakespeed.manager.first_wrapper", when="always"),))
    assert "is not patched by fakespeed.manager.first_wrapper, as the ledger says it always is" in refused(always)


@pytest.mark.parametrize(
    "code, name",
    [
        ("from fakemega.train import step as train_step", "fakemega.holder.train_step"),
        ("import fakemega.train\nSTEPS = {'default': fakemega.train.step}", "fakemega.holder.STEPS[...]"),
        ("import fakemega.train\nSTEPS = [fakemega.train.step]", "fakemega.holder.STEPS[...]"),
        ("import fakemega.train\nclass Runner:\n    step = fakemega.train.step", "fakemega.holder.Runner.step"),
    ],
)
def test_a_reference_that_would_stay_old_is_refused(packages, code, name):
    packages(MEGA)
    packages({"fakemega/holder.py": code})
    importlib.import_module("fakemega.holder")
    message = refused(patch(), OTHER)
    assert f"{name} holds fakemega.train.step and would keep the old function" in message
    assert f"import that module after the patches, or give the ledger an entry with target {name}" in message


def test_a_checkout_of_the_wrong_version_is_refused(packages):
    root = packages(MEGA)
    (root / "setup.py").write_text("__version__ = '2.0'\n")
    importlib.import_module("fakemega.train")
    upstreams = (Upstream(project="Fake", package="fakemega", version_file="setup.py", versions=("1.0", "1.1")),)
    assert "Fake is 2.0; the patches were written for 1.0 or 1.1: check that one out" in refused(patch(), upstreams=upstreams)
    (root / "setup.py").write_text("__version__ = '1.1'\n")
    assert "Fake is" not in refused(patch(signature="()"), upstreams=upstreams)


def test_a_commit_that_no_table_knows_is_named(packages, tmp_path):
    root = packages(MEGA)
    upstreams = (Upstream(project="Fake", package="fakemega", version_file="setup.py"),)
    (tmp_path / "signatures").mkdir()
    table = tmp_path / "signatures" / "one.json"
    table.write_text(json.dumps({"format": 2, "projects": {"Fake": {"commit": "0123456789abcdef"}}}))
    told = ledger(folder=tmp_path, upstreams=upstreams)
    assert unknown_commits(told) == [], "no git there"
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    (line,) = unknown_commits(told)
    assert f"Fake is at commit {commit[:12]}, the patches were compared with 0123456789ab" in line
    table.write_text(json.dumps({"format": 2, "projects": {"Fake": {"commit": commit}}}))
    assert unknown_commits(told) == []


def test_all_problems_come_in_one_message(mega):
    mega.alias = mega.other
    message = refused(patch(target="fakemega.train.gone"), patch(name="second", signature="()"), OTHER)
    assert "3 problem(s) with patches/manifest.toml, nothing was patched" in message
    assert re.search(r"1\. step: .* has no gone.*\n +2\. second: .*'model' is new.*\n +3\. other: fakemega.train.alias holds", message)


class Manager:
    """MindSpeed's rules: what is called wrapper stacks, anything else replaces; applying rewrites namesakes."""

    def __init__(self, broken: str = ""):
        self.replacing, self.wrapping, self.first, self.broken = {}, {}, {}, broken

    def register_patch(self, orig_func_name, new_func=None, force_patch=False, create_dummy=False):
        if new_func.__name__.endswith("wrapper"):
            self.wrapping.setdefault(orig_func_name, []).append(new_func)
        elif orig_func_name in self.replacing and not force_patch:
            raise RuntimeError("exists")
        else:
            self.replacing[orig_func_name] = new_func

    def apply_patches(self):
        for target in {**self.replacing, **self.wrapping}:
            module, name = target.rsplit(".", 1)
            now = getattr(importlib.import_module(module), name)
            new = self.replacing.get(target, self.first.setdefault(target, now))
            for wrapper in self.wrapping.get(target, []):
                new = wrapper(new)
            # transformers imports what it lacks at the first look at a name, if another test of this process has loaded it
            for each in [module for key, module in sys.modules.items() if not key.startswith("transformers")]:
                if getattr(each, name, None) is now and each.__name__ != self.broken:
                    setattr(each, name, new)


def mindspeed_manager(folder):
    """MindSpeedPatchesManager itself; its file needs nothing but the standard library."""
    spec = importlib.util.spec_from_file_location("mindspeed_patch_utils", folder / "MindSpeed" / "mindspeed" / "patch_utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MindSpeedPatchesManager


@pytest.mark.parametrize("whose", ["made up", "MindSpeed's"])
def test_ours_lies_over_what_a_patch_manager_put_there(mega, request, whose):
    manager = Manager() if whose == "made up" else mindspeed_manager(request.getfixturevalue("upstream_folder"))
    speed = importlib.import_module("fakespeed.manager")
    manager.register_patch("fakemega.train.step", speed.first_wrapper)
    manager.register_patch("fakemega.train.step", speed.step)
    manager.apply_patches()
    assert sys.modules["fakemega.caller"].call() == ["first", "replaced", "m", 2]
    declared = tuple(Declared(by=f"fakespeed.manager.{name}", when="always") for name in ("first_wrapper", "step"))
    book = ledger(patch(patched_upstream=declared), OTHER)
    before = snapshot(MADE_UP)
    applied = apply_ledger(manager, ledger=book)
    assert sys.modules["fakemega.caller"].call() == ["ours", "first", "replaced", "m", 2]
    assert applied[0].over == ("fakespeed.manager.first_wrapper", "fakespeed.manager.step")
    changed = [change.name for change in difference(before, snapshot(MADE_UP))]
    assert changed == ["fakemega.caller.step", "fakemega.train.other", "fakemega.train.step"]
    assert apply_ledger(manager, ledger=book)[0] == applied[0]
    assert sys.modules["fakemega.caller"].call() == ["ours", "first", "replaced", "m", 2]


def test_a_manager_that_leaves_a_module_out_is_found_out_and_undone(mega):
    before = snapshot(MADE_UP)
    with pytest.raises(ValueError, match="were taken back: fakemega.caller.step still holds the old fakemega.train.step"):
        apply_ledger(Manager(broken="fakemega.caller"), ledger=ledger(patch(), OTHER))
    assert not difference(before, snapshot(MADE_UP))


def test_an_error_in_the_middle_is_undone(mega):
    importlib.import_module("fakeours")
    before = snapshot(MADE_UP)
    with pytest.raises(RuntimeError, match="exists"):
        apply_ledger(Refusing(), ledger=ledger(patch(), OTHER))
    assert not difference(before, snapshot(MADE_UP))


class Refusing(Manager):
    """Applies the first patch and fails at the second."""

    def register_patch(self, orig_func_name, new_func=None, force_patch=False, create_dummy=False):
        if self.wrapping:
            self.apply_patches()
            raise RuntimeError("exists")
        super().register_patch(orig_func_name, new_func)
