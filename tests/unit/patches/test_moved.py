"""What moved between two versions of upstream is listed, with the place where it may be now."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest

from mindspeed_vita.cli import main as cli
from mindspeed_vita.integration.patching import load_ledger
from mindspeed_vita.integration.patching.ledger import Ledger, Seam, Upstream
from patches.tool import command
from patches.tool.checkout import Checkouts
from patches.tool.moved import Move, moves
from tests.unit.integration.patching.made_up import ledger, patch, write

REDUCE = """
    def reduce_norms(model, config):
        grads = []
        for parameter in model.parameters():
            if parameter.sequence_parallel and config.size > 1:
                grads.append(parameter.grad)
        flat = flatten(grads)
        all_reduce(flat, group=config.group)
        unflatten(flat, grads)
"""
BEFORE = {
    "fakemega/train.py": "def step(model, count=1):\n    return model\n",
    "fakemega/grads.py": REDUCE,
    "fakemega/old/samplers.py": "class Sampler:\n    def __init__(self, total): ...\n\nclass Kept:\n    def __init__(self): ...\n",
    "fakespeed/tools.py": "def fast(): ...\n\ndef slow(): ...\n",
    "fakespeed/held.py": "LEVEL = 3\n",
    "setup.py": "",
    "fakeuser/start.py": "from fakespeed.tools import fast, slow\nfrom fakespeed.held import LEVEL\n",
}
AFTER = {
    "fakemega/train.py": "def step(model, schedule, count=1):\n    return model\n",
    "fakemega/grads.py": REDUCE.replace("reduce_norms(model, config)", "reduce_shared(model, config, group=None)"),
    "fakemega/old/samplers.py": "from fakemega.data import Kept\n",
    "fakemega/data.py": "class Sampler:\n    def __init__(self, total): ...\n\nclass Kept:\n    def __init__(self): ...\n",
    "fakespeed/tools.py": "def slow(): ...\n",
    "fakespeed/quick.py": "def fast(): ...\n",
    "setup.py": "",
    "fakeuser/start.py": "from fakespeed.tools import fast, slow\nfrom fakespeed.held import LEVEL\n",
}
SEAMS = ("fakemega.grads.reduce_norms", "fakemega.old.samplers.Sampler", "fakemega.old.samplers.Kept", "fakespeed.tools.slow")


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    """A ledger over both trees."""
    write(tmp_path / "before", BEFORE)
    write(tmp_path / "after", AFTER)
    upstreams = tuple(Upstream(project=name, package=name, version_file="setup.py") for name in ("fakemega", "fakespeed", "fakeuser"))
    upstreams = (upstreams[0], replace(upstreams[1], used_by=("fakeuser",)), upstreams[2])
    seams = tuple(Seam(target=target, upstream=target.split(".")[0], signature="()", use="as it is") for target in SEAMS)
    return ledger(patch(), folder=tmp_path, seams=seams, upstreams=upstreams)


def found(book: Ledger, before: str, after: str) -> dict[str, Move]:
    sides = [Checkouts.in_folders([book.folder / side], book.upstreams) for side in (before, after)]
    return {move.target: move for move in moves(book, *sides)}


def test_nothing_moves_between_the_same_sources(book: Ledger):
    assert found(book, "before", "before") == {}


def test_each_kind_of_move_is_told_with_the_old_place_and_the_new_one(book: Ledger):
    moved = found(book, "before", "after")
    assert {target: (move.part, move.change) for target, move in moved.items()} == {
        "fakemega.train.step": ("patch", "signature"),
        "fakemega.grads.reduce_norms": ("seam", "gone"),
        "fakemega.old.samplers.Sampler": ("seam", "gone"),
        "fakemega.old.samplers.Kept": ("seam", "place"),
        "fakespeed.tools.fast": ("import", "gone"),
        "fakespeed.held.LEVEL": ("import", "gone"),
    }
    assert "'schedule' is new" in moved["fakemega.train.step"].told
    kept = moved["fakemega.old.samplers.Kept"]
    assert (kept.before.file, kept.now.file, kept.now.line) == ("fakemega/old/samplers.py", "fakemega/data.py", 4)


def test_what_is_gone_is_looked_for_by_its_name_and_by_its_words(book: Ledger):
    moved = found(book, "before", "after")
    (renamed,) = moved["fakemega.grads.reduce_norms"].suggestions
    assert renamed.name == "fakemega.grads.reduce_shared" and 0.8 < renamed.alike < 1
    assert [place.name for place in moved["fakemega.old.samplers.Sampler"].suggestions] == ["fakemega.data.Sampler"]
    assert [place.name for place in moved["fakespeed.tools.fast"].suggestions] == ["fakespeed.quick.fast"]
    assert moved["fakespeed.held.LEVEL"].suggestions == (), "a constant has no words, and nothing else has its name"


def test_the_command_lists_them(book: Ledger, capsys):
    sides = {"before": [book.folder / "before"], "upstream": [book.folder / "after"]}
    arguments = argparse.Namespace(action="moved", json=False, **sides)
    assert command.run(arguments, book) == 0
    text = capsys.readouterr().out
    assert "gone       seam    fakemega.grads.reduce_norms" in text
    assert "was fakemega/grads.py:2" in text and "perhaps fakemega/grads.py:2 fakemega.grads.reduce_shared, 9" in text
    assert "perhaps nothing like it was found" in text
    assert text.splitlines()[-1] == "6 names: 4 gone, 1 signature, 1 place; 1 of the ledger's 5 names are as they were"
    arguments.json = True
    assert command.run(arguments, book) == 0
    assert len(json.loads(capsys.readouterr().out)) == 6


def test_two_sets_of_checkouts_are_asked_for(capsys):
    with pytest.raises(SystemExit):
        cli.main(["patches", "moved", "--upstream", "somewhere"])
    assert "--before" in capsys.readouterr().err


def test_the_real_sources_have_not_moved_from_themselves(upstream_folder):
    book = load_ledger()
    sources = Checkouts.in_folders([upstream_folder], book.upstreams)
    assert moves(book, sources, sources) == []
