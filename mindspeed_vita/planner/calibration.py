"""One measured step scales the time model: seconds of a whole step, or of single parts of it."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mindspeed_vita.planner.time_model import StepTime

STEP = "seconds"
"""Key of a whole step, as in metrics.jsonl."""
_WARM_UP = 1
"""Steps at the start of a run that are left out: the first one compiles and allocates."""
_PARTS = tuple(field.name for field in fields(StepTime))


def read_calibration(text: str) -> dict[str, float]:
    """What was measured, in seconds by key: `seconds` for a whole step, or names of parts.

    Args:
        text: "KEY=VALUE" (several separated by commas), or the path of a run's metrics.jsonl, whose median step counts.

    Raises:
        ValueError: neither; an unknown key; no positive number; or a file without steps.
    """
    if "=" in text and not Path(text).is_file():
        pairs = [_pair(pair.strip(), text) for pair in text.split(",")]
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise ValueError(f"--calibrate {text}: a key stands there twice; give each once")
        return dict(pairs)
    path = Path(text)
    if not path.is_file():
        raise ValueError(f"--calibrate {text}: no such file; expected a metrics.jsonl of this layout, or {STEP}=NUMBER")
    found: list[float] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"--calibrate {text}: line {number} is not JSON; expected a run's metrics.jsonl") from error
        if isinstance(entry, dict) and STEP in entry:
            found.append(_seconds(entry[STEP], f"{text}: line {number}"))
    if len(found) <= _WARM_UP:
        raise ValueError(f"--calibrate {text}: {len(found)} steps with {STEP!r}; expected at least {_WARM_UP + 1}, the first is left out")
    return {STEP: statistics.median(found[_WARM_UP:])}


def factors(modelled: StepTime, measured: Mapping[str, float]) -> dict[str, float]:
    """By which each part of a modelled step is multiplied, so that it takes what was measured.

    Args:
        modelled: of the layout that was measured.
        measured: see `read_calibration`. Parts that were measured count first; the whole step scales the others.

    Raises:
        ValueError: a part was measured that the model gives no time, or the measured parts exceed the step.
    """
    parts = modelled.parts()
    known = {name: measured[name] for name in _PARTS if name in measured}
    for name in known:
        if not parts[name]:
            raise ValueError(f"--calibrate {name}={known[name]}: the modelled step has no such part")
    found = {name: known[name] / parts[name] if name in known else 1.0 for name in _PARTS}
    if STEP in measured:
        others = sum(seconds for name, seconds in parts.items() if name not in known)
        left = measured[STEP] - sum(known.values())
        if left <= 0 or not others:
            raise ValueError(f"--calibrate: the parts take {sum(known.values()):g} s, and the step {measured[STEP]:g} s; expected less")
        found.update({name: left / others for name in _PARTS if name not in known})
    return found


def calibrated(time: StepTime, scale: Mapping[str, float]) -> StepTime:
    """Each part times its factor. Other layouts are scaled as the measured one."""
    return replace(time, **{name: seconds * scale[name] for name, seconds in time.parts().items()})


def _pair(pair: str, text: str) -> tuple[str, float]:
    key, _, value = pair.partition("=")
    if key not in (STEP, *_PARTS):
        raise ValueError(f"--calibrate {text}: unknown key {key!r}; expected {STEP}, or a part: {', '.join(_PARTS)}")
    return key, _seconds(value, text, key)


def _seconds(value: Any, text: str, key: str = STEP) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (ValueError, TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or number <= 0:
        raise ValueError(f"--calibrate {text}: {key} is {value!r}; expected a positive number of seconds")
    return number
