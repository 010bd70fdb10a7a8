"""Lists of values are written once: tables that are keyed by them have all of their keys, and no other file repeats them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from mindspeed_vita import choices
from mindspeed_vita.hf import choices as exported

PACKAGE = Path(choices.__file__).parent
LISTS = {
    name: get_args(value)
    for module in (choices, exported)
    for name, value in vars(module).items()
    if get_args(value) and all(isinstance(item, str) for item in get_args(value))
}


def repeated(path: Path) -> list[str]:
    """Lists of this file's literals that hold a whole list of choices and at most one value more (auto, for one)."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            values = {item.value for item in node.elts if isinstance(item, ast.Constant)}
            same = [name for name, known in LISTS.items() if values >= set(known) and len(values) <= len(known) + 1]
            found += [f"{path.relative_to(PACKAGE)}:{node.lineno} repeats {name}" for name in same]
    return found


def test_no_list_is_written_twice() -> None:
    assert len(LISTS) > 15
    files = [path for path in PACKAGE.rglob("*.py") if path not in (Path(choices.__file__), Path(exported.__file__))]
    assert not [line for path in files for line in repeated(path)]


def test_the_search_finds_a_list_in_another_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "a.py").write_text('modes = ["cross_source", "same_source"]\n')
    assert repeated(tmp_path / "a.py") == ["a.py:1 repeats Packing"]


def test_tables_have_a_row_for_every_choice() -> None:
    from mindspeed_vita.hf.tiling import NORMALIZATIONS
    from mindspeed_vita.models.vision.vit import _ACTIVATIONS
    from mindspeed_vita.parallel.build import DTYPES
    from mindspeed_vita.platform import get_platform

    with pytest.raises(ValueError, match="DEVICE='tpu' is not known") as error:
        get_platform("tpu")
    assert re.findall(r"\b(?:auto|npu|cuda|cpu)\b", str(error.value)) == ["auto", *choices.DEVICES]
    assert tuple(NORMALIZATIONS) == LISTS["Normalization"]
    assert set(DTYPES) == set(choices.PRECISIONS)
    assert set(_ACTIVATIONS) == set(choices.ACTIVATIONS)


def test_the_lists_need_no_installed_package() -> None:
    """`vita doctor` reads them on machines where packages are missing."""
    code = "import sys; import mindspeed_vita.choices, mindspeed_vita.cli.doctor; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"yaml", "pydantic", "numpy", "torch"} & set(ast.literal_eval(done.stdout))
