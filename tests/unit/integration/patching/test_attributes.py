"""A change of any module's or class's attribute shows, and nothing else does."""

from __future__ import annotations

import importlib

from tests.attributes import difference, snapshot

FILES = {
    "fakemega/train.py": "def step(): ...\nVALUE = 1\nclass Loop:\n    def run(self): ...\n    class Inner: ...\n",
    "fakemega/late.py": "from fakemega.train import step\n",
}


def test_changes_of_modules_and_classes_are_named(packages):
    packages(FILES)
    train = importlib.import_module("fakemega.train")
    before = snapshot(["fakemega"])
    assert not difference(before, snapshot(["fakemega"]))
    old = train.step
    train.step = new = lambda: None
    train.Loop.run = new
    train.added = 1
    del train.VALUE
    found = {change.name: (change.before, change.after) for change in difference(before, snapshot(["fakemega"]))}
    assert found.pop("fakemega.train.Loop.run")[1] is new
    assert found == {"fakemega.train.step": (old, new), "fakemega.train.added": (None, 1), "fakemega.train.VALUE": (1, None)}


def test_a_module_that_was_imported_meanwhile_is_no_change(packages):
    packages(FILES)
    importlib.import_module("fakemega.train")
    before = snapshot(["fakemega"])
    importlib.import_module("fakemega.late")
    assert not difference(before, snapshot(["fakemega"]))
    assert "fakemega.late.step" in [change.name for change in difference(before, snapshot(["fakemega"]), new_modules=True)]


def test_other_packages_are_left_out(packages):
    packages({**FILES, "fakespeed/x.py": "VALUE = 1"})
    other = importlib.import_module("fakespeed.x")
    before = snapshot(["fakemega"])
    other.VALUE = 2
    assert not difference(before, snapshot(["fakemega"]))
