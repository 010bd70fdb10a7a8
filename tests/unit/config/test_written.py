"""What may be written for a value of each type, as a table: each way of writing with what the loader reads, or its refusal."""

from __future__ import annotations

import datetime
import math
from enum import Enum
from functools import reduce
from typing import Any

import pytest

from mindspeed_vita.config import recipe_from_dict, validate


class Outcome(Enum):
    """An enumeration, so that the names of the tests are the same in every process."""

    REFUSED = "refused"


REFUSED = Outcome.REFUSED

# key of the type -> (what is written, what is read)
WHOLE: list[tuple[Any, Any]] = [
    (3, 3), (-3, -3), ("3", 3), ("+3", 3), ("-3", -3), ("007", 7), (3.0, 3), (1e3, 1000), (10**30, 10**30), ("${VITA_SEVEN}", 7),
    ("${VITA_NONE:-5}", 5),
    (True, REFUSED), (False, REFUSED), (3.5, REFUSED), ("3.0", REFUSED), ("1e3", REFUSED), (" 3", REFUSED), ("3\n", REFUSED),
    ("1_000", REFUSED), ("0x10", REFUSED), ("", REFUSED), ("many", REFUSED), (None, REFUSED), ([3], REFUSED), ({}, REFUSED),
    (math.inf, REFUSED), (math.nan, REFUSED), (b"3", REFUSED), ("${VITA_EMPTY}", REFUSED), ("${VITA_NONE}", REFUSED),
]  # fmt: skip
NUMBER: list[tuple[Any, Any]] = [
    (0.5, 0.5), (1, 1.0), (-2, -2.0), ("1e-3", 1e-3), ("1E3", 1e3), ("+1.e2", 1e2), ("-1.5e-2", -1.5e-2), (math.inf, math.inf),
    ("${VITA_TINY}", 1e-4),
    (True, REFUSED), (False, REFUSED), ("0.5", REFUSED), ("1", REFUSED), (".5e1", REFUSED), ("1e", REFUSED), (" 1e3", REFUSED),
    ("inf", REFUSED), ("nan", REFUSED), ("", REFUSED), (None, REFUSED), ([1.0], REFUSED), ({}, REFUSED), ("${VITA_SEVEN}", REFUSED),
    (1j, REFUSED), (b"1e3", REFUSED),
]  # fmt: skip
SWITCH: list[tuple[Any, Any]] = [
    (True, True), (False, False), ("true", True), ("TRUE", True), ("False", False), ("${VITA_TRUE}", True),
    (1, REFUSED), (0, REFUSED), (1.0, REFUSED), ("1", REFUSED), ("yes", REFUSED), ("on", REFUSED), ("t", REFUSED), ("", REFUSED),
    (" true", REFUSED), (None, REFUSED), ([], REFUSED),
]  # fmt: skip
TEXT: list[tuple[Any, Any]] = [
    ("a", "a"), ("", ""), (" a ", " a "), (7, "7"), (-7, "-7"), (None, ""), ("1e-3", "1e-3"), ("true", "true"), ("${VITA_SEVEN}/x", "7/x"),
    ("${VITA_NONE:-}", ""), ("$VITA_SEVEN", "$VITA_SEVEN"),
    (True, REFUSED), (1.5, REFUSED), ([], REFUSED), (["a"], REFUSED), ({}, REFUSED), (b"a", REFUSED),
    (datetime.date(2024, 1, 1), REFUSED), ("${VITA_NONE}", REFUSED),
]  # fmt: skip
CHOICE: list[tuple[Any, Any]] = [
    ("fp32", "fp32"), ("${VITA_FP32}", "fp32"),
    ("fp8", REFUSED), ("FP32", REFUSED), ("", REFUSED), (None, REFUSED), (32, REFUSED), (True, REFUSED), (["fp32"], REFUSED), ({}, REFUSED),
]  # fmt: skip
NUMBERS: list[tuple[Any, Any]] = [
    ([1, 0.5, "1e-3"], (1.0, 0.5, 1e-3)), ((2.0,), (2.0,)), ("1e-3, 2e0", (1e-3, 2.0)), ("1e-3 2e0", (1e-3, 2.0)), ([], ()), ("", ()),
    (["${VITA_TINY}"], (1e-4,)), ("${VITA_TINY}, ${VITA_TINY}", (1e-4, 1e-4)),
    ("1, 2", REFUSED), ([True], REFUSED), ([None], REFUSED), ([[1.0]], REFUSED), (1.0, REFUSED), (None, REFUSED), ({}, REFUSED),
    ({1.0}, REFUSED),
]  # fmt: skip
MODULES: list[tuple[Any, Any]] = [
    (["vision"], ("vision",)), (("projector", "language"), ("projector", "language")), ("vision, projector", ("vision", "projector")),
    ("vision", ("vision",)), ("vision projector", ("vision", "projector")), (["${VITA_MODULE}"], ("projector",)),
    ("${VITA_MODULE},vision", ("projector", "vision")),
    ([], REFUSED), ("", REFUSED), (["tower"], REFUSED), ("vision;projector", REFUSED), ([["vision"]], REFUSED), ([None], REFUSED),
    (None, REFUSED), (7, REFUSED), ({"vision": True}, REFUSED), ({"vision"}, REFUSED),
]  # fmt: skip
NAMES: list[tuple[Any, Any]] = [
    ([], ()), ("", ()), (["json", "re"], ("json", "re")), ("json,re", ("json", "re")), ("json", ("json",)),
    (None, REFUSED), (5, REFUSED), ([True], REFUSED), ({}, REFUSED), (["no.such.module"], REFUSED),
]  # fmt: skip
STAGE: list[tuple[Any, Any]] = [
    (2, 2), ("2", 2), (2.0, 2), (None, None), ("${VITA_TWO}", 2),
    (0, REFUSED), (5, REFUSED), (True, REFUSED), (2.5, REFUSED), ("two", REFUSED), ("", REFUSED), ([1], REFUSED), ({}, REFUSED),
]  # fmt: skip
PRESET: list[tuple[Any, Any]] = [
    ("7b", "7b"), ("${VITA_SEVEN}b", "7b"), ("9b", REFUSED), (7, REFUSED),
    (None, REFUSED), (["7b"], REFUSED), (True, REFUSED), ({}, REFUSED),
]  # fmt: skip
FAMILY: list[tuple[Any, Any]] = [("qwen3", "qwen3"), ("qwen9", REFUSED), (3, REFUSED), (["qwen3"], REFUSED)]
TOWER_PRESET: list[tuple[Any, Any]] = [("clip_l", "clip_l"), ("", ""), (None, ""), ("vit_g", REFUSED), (3, REFUSED)]
SECTION: list[tuple[Any, Any]] = [
    (None, "default"), ({}, "default"), ({"seed": 1}, "seed"),
    (5, REFUSED), ("", REFUSED), ("text", REFUSED), ([], REFUSED), ([("seed", 1)], REFUSED), (True, REFUSED), ({1: 2}, REFUSED),
    ({None: 2}, REFUSED), ({"Seed": 1}, REFUSED), ({"seed ": 1}, REFUSED),
]  # fmt: skip
TABLE = {
    "train.seed": WHOLE,
    "model.language.rope_base": NUMBER,
    "data.resets": SWITCH,
    "data.mixture": TEXT,
    "train.precision": CHOICE,
    "model.language.rope_scaling.short_factor": NUMBERS,
    "train.modules": MODULES,
    "plugins": NAMES,
    "stage": STAGE,
    "model.preset": PRESET,
    "model.language.family": FAMILY,
    "model.vision.preset": TOWER_PRESET,
    "train": SECTION,
}
ROWS = [(key, written, read) for key, rows in TABLE.items() for written, read in rows]


def nested(key: str, value: Any) -> dict[str, Any]:
    return reduce(lambda inner, part: {part: inner}, reversed(key.split(".")), value)


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("SEVEN", "7"), ("TWO", "2"), ("TINY", "1e-4"), ("TRUE", "true"), ("FP32", "fp32"), ("MODULE", "projector"), ("EMPTY", ""),
    ):  # fmt: skip
        monkeypatch.setenv(f"VITA_{name}", value)


def named(row: Any) -> str:
    return f"{row!r:.30}"


@pytest.mark.parametrize(("key", "written", "read"), ROWS, ids=named)
def test_what_is_written_is_read_or_refused(key: str, written: Any, read: Any) -> None:
    if read is REFUSED:
        with pytest.raises(ValueError):
            validate(recipe_from_dict(nested(key, written)))
        return
    recipe = recipe_from_dict(nested(key, written))
    found = reduce(getattr, key.split("."), recipe)
    if key == "train":
        assert found.seed == (1 if read == "seed" else 1234)
        return
    assert found == read and type(found) is type(read)
    if isinstance(found, tuple):
        assert [type(item) for item in found] == [type(item) for item in read]
