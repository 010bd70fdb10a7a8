"""The ledger names everything that our code changes in other packages: by the source of all our code, and by what really changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_vita.integration.patching import live, load_ledger
from tests.pools import LINES, overlay
from tests.unit.integration.patching.rebinding import UNREADABLE, Change, changes

ROOT = Path(__file__).resolve().parents[4]
LEDGER = load_ledger()
ELSEWHERE = ROOT / "scripts" / "bench" / "peers.py"
"""Runs in the environment of other loaders, not in ours, and makes modules of its own there."""
SOURCES = sorted(
    path for folder in ("mindspeed_vita", "patches", "scripts", "examples") for path in (ROOT / folder).rglob("*.py") if path != ELSEWHERE
)
ENGINE = "mindspeed_vita.integration.patching.apply."
"""Sets what [[patch]] entries name, so the source does not say which attribute."""


def test_everything_that_our_code_changes_in_other_packages_is_named_and_nothing_else():
    found = {change for path in [*SOURCES, ROOT / "pretrain_vita.py"] for change in changes(path, ROOT)}
    engine = {change for change in found if change.by.startswith(ENGINE)}
    assert engine and all(change.target.startswith(UNREADABLE) for change in engine)
    named = {Change(by=entry.by, target=target) for entry in LEDGER.rebound for target in entry.targets}
    unnamed, gone = sorted(found - engine - named), sorted(named - found)
    assert not unnamed, f"give patches/manifest.toml a [[rebound]] entry (patches/README.md) for {unnamed}"
    assert not gone, f"take out of patches/manifest.toml what no code changes any more: {gone}"


@pytest.mark.parametrize("entry", LEDGER.rebound, ids=lambda entry: entry.by.rsplit(".", 1)[1])
def test_every_entry_names_a_function_of_ours_and_says_why_and_until_when(entry):
    assert callable(live.locate(entry.by).value)
    assert min(len(entry.why), len(entry.until), len(entry.when)) > 20


CHANGED_ON_THE_CPU = """
import importlib, json, sys
modules, targets = json.loads(sys.argv[1])
for name in modules:
    importlib.import_module(name)
from mindspeed_vita.integration.patching import live
from mindspeed_vita.platform import cpu, megatron_compat
from tests.attributes import difference, snapshot
packages = ("megatron", "numpy", "torch")
before = snapshot(packages)
cpu.enable_megatron()
megatron_compat.install_patches()
changed = [change.name for change in difference(before, snapshot(packages))]

def by_definition(target):
    place = live.locate(target)
    return f"{place.owner.__module__}.{place.owner.__qualname__}.{place.name}" if isinstance(place.owner, type) else target

print(json.dumps({"core": megatron_compat.core_version(), "changed": changed, "named": sorted(map(by_definition, targets))}))
"""
MODULES = (
    "numpy",
    "torch.cuda.random",
    "torch.utils._device",
    "megatron.core.optimizer.distrib_optimizer",
    "megatron.core.tensor_parallel.random",
    "megatron.core.pipeline_parallel.schedules",
)


@pytest.mark.parametrize("line", LINES)
def test_the_built_in_engine_on_a_cpu_changes_what_the_ledger_names_and_nothing_else(line: str):
    folders = [str(ROOT)] if line == "installed" else [overlay(line), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "CUDA_VISIBLE_DEVICES": ""}
    functions = ("redirect.", "megatron_compat.install_patches") if line == "0.12" else ("redirect.",)
    entries = [entry for entry in LEDGER.rebound if entry.by.removeprefix("mindspeed_vita.platform.").startswith(functions)]
    targets = {target for entry in entries for target in entry.targets}
    command = [sys.executable, "-c", CHANGED_ON_THE_CPU, json.dumps([MODULES, sorted(targets)])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["core"] == [0, 12]) == (line == "0.12")
    assert found["changed"] == found["named"]


@pytest.mark.parametrize(
    "text, targets",
    [
        ("import torch\ntorch.cuda.f = None", ["torch.cuda.f"]),
        ("import torch.nn as nn\nnn.Linear.forward = None", ["torch.nn.Linear.forward"]),
        ("from torch import nn\ndel nn.Linear.forward", ["torch.nn.Linear.forward"]),
        ("def f():\n    from torch import nn\n    def g():\n        nn.x, y = 1, 2", ["torch.nn.x"]),
        ("import torch\ntorch.x += 1", ["torch.x"]),
        ("import torch\nsetattr(torch.cuda, 'f', None)", ["torch.cuda.f"]),
        ("import torch\nNAMES = ('a', 'b')\nfor name in NAMES:\n    setattr(torch, name, None)", ["torch.a", "torch.b"]),
        ("import torch\ndef f(name):\n    setattr(torch, name, None)", ["torch.?"]),
        ("def put(owner, name):\n    setattr(owner, name, None)", ["?.?"]),
        ("import torch\nfor each in (torch.cuda, torch.cpu):\n    each.f = None", ["torch.cpu.f", "torch.cuda.f"]),
        ("import torch\nowner = torch.cuda\nowner.f = None", ["torch.cuda.f"]),
        ("import torch\ngetattr(torch, 'cuda').f = None", ["torch.cuda.f"]),
        ("import torch\ntorch.cuda.__dict__['f'] = None", ["torch.cuda.f"]),
        ("import torch\nvars(torch.cuda)['f'] = None", ["torch.cuda.f"]),
        ("import torch\nvars(torch.cuda).update(f=None)", ["torch.cuda.?"]),
        ("import importlib\nmodule = importlib.import_module('torch.cuda')\nmodule.f = None", ["torch.cuda.f"]),
        ("import sys\nsys.modules['torch'].f = None", ["torch.f"]),
        ("import sys\nsys.modules['torch_npu'] = None", ["torch_npu"]),
        ("from torch import LIST\nimport x\nLIST.append(1)\nx.y.MAP.update(a=1)", ["torch.LIST", "x.y.MAP"]),
        ("from unittest import mock\nimport torch\nmock.patch.object(torch, 'f')\nmock.patch('torch.g')", ["torch.f", "torch.g"]),
        ("manager.register_patch('megatron.f', None)", ["megatron.f"]),
    ],
)
def test_a_change_is_found_however_it_is_written(tmp_path: Path, text: str, targets: list[str]):
    (tmp_path / "there.py").write_text(text, encoding="utf-8")
    assert sorted({change.target for change in changes(tmp_path / "there.py", tmp_path)}) == targets


@pytest.mark.parametrize(
    "text",
    [
        "import torch\nlayer = torch.nn.Linear(1, 1)\nlayer.weight = None",
        "import os, sys\nos.environ['A'] = '1'\nsys.excepthook = None",
        "import mindspeed_vita\nmindspeed_vita.x = 1",
        "import numpy as np\nnp.sort([1])\nfound = []\nfound.append(np.pi)",
        "import torch\ndef f(torch):\n    torch.x = 1",
        "class A:\n    def f(self, name):\n        self.x = 1\n        setattr(self, name, 2)",
    ],
)
def test_what_is_no_change_of_another_package_is_not_found(tmp_path: Path, text: str):
    (tmp_path / "there.py").write_text(text, encoding="utf-8")
    assert not list(changes(tmp_path / "there.py", tmp_path))
