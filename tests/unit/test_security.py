"""What docs/security.md claims of the whole package, and that the tests which it names exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(ROOT.glob("mindspeed_vita/**/*.py"))
PICKLES = "mindspeed_vita/checkpoint/megatron/pickles.py"
RESTRICTED = {"mindspeed_vita/integration/hf_trainer/trainer.py": "numbers of a schedule that Trainer saved, by torch's restricted reader"}
WHOLE = {"mindspeed_vita/integration/hf_trainer/fully_sharded.py": "a run's own checkpoint; docs/security.md warns"}
OWN_PROCESSES = {"mindspeed_vita/data/pack_share.py": "packs from rank to rank of one host, through a folder that only its user may enter"}
NETWORK = {
    "mindspeed_vita/serving/fetching.py": "asks allowed hosts",
    "mindspeed_vita/serving/server.py": "listens",
    "mindspeed_vita/cli/serve.py": "listens",
    "mindspeed_vita/hf/image_processing_long_vita.py": "travels with exports, and opens what its caller passes",
    "mindspeed_vita/ops/say_once.py": "the name of this host",
    "mindspeed_vita/files/stores.py": "opens the addresses of object stores that a recipe or a command line names",
    "mindspeed_vita/engine/lifeline.py": "ranks of a run hold a connection to the first one",
}


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that a file imports, wherever."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def called(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call, with the dotted name that it is written with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.AST]:
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def test_pickles_are_read_in_one_file_only(trees):
    modules = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
    found = {name for name, tree in trees.items() if modules & {module.partition(".")[0] for module in imported(tree)}}
    loads = ("torch.load", "np.load", "numpy.load", "torch.jit.load", "pd.read_pickle")
    restricted, whole = set(), set()
    for name, tree in trees.items():
        for function, call in called(tree):
            if function.endswith("dcp.load"):  # torch's own reader unpickles the list of parts
                whole.add(name)
            if function in loads:
                safe = any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in call.keywords)
                (restricted if function == "torch.load" and safe else found).add(name)
    assert found == {PICKLES, *OWN_PROCESSES} and restricted == set(RESTRICTED) and whole == set(WHOLE)


def test_nothing_evaluates_text_or_starts_a_shell(trees):
    forbidden = {"eval", "exec", "compile", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load", "subprocess.getoutput"}
    found = []
    for name, tree in trees.items():
        for function, call in called(tree):
            shell = any(word.arg == "shell" and ast.unparse(word.value) != "False" for word in call.keywords)
            if function in forbidden or shell or (function == "yaml.load" and name != "mindspeed_vita/config/unique_keys.py"):
                found.append(f"{name}:{call.lineno} {function}")
    assert not found
    import yaml

    from mindspeed_vita.config import unique_keys

    assert issubclass(unique_keys._Loader, (yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def test_the_network_is_used_in_named_places_only(trees):
    modules = {"socket", "ssl", "http.client", "urllib.request", "ftplib", "smtplib", "requests", "httpx", "aiohttp"}
    modules |= {"fsspec", "s3fs", "boto3", "botocore", "huggingface_hub"}
    found = {name for name, tree in trees.items() if modules & set(imported(tree))}
    assert found == set(NETWORK)


def test_the_tests_that_the_page_names_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/security.md").read_text(encoding="utf-8"))
    assert len(named) > 25
    missing = [f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / file).read_text(encoding="utf-8")]
    assert not missing
