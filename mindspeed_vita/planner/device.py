"""A device as named physical constants: a table in devices/, or a user's own file. Nothing here is fitted to a time of a step."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mindspeed_vita.config.unique_keys import read_yaml

_FOLDER = Path(__file__).parent / "devices"
KINDS = ("npu", "cuda")
"""What a device adds to its tensors; see device_memory.py."""
_SHARES = ("matrix_best", "attention_best")
_COUNTS = ("memory_bytes", "node_devices")


@dataclass(frozen=True, kw_only=True)
class Device:
    """Constants of one device. Each has a comment with its source in the file. Rates are per second, times in seconds."""

    name: str
    """Of the table, or the path of the file."""
    kind: str
    """npu or cuda: the libraries, and with them the memory that they take."""
    peak_flops: float
    """Operations of dense bf16 matrix products."""
    matrix_best: float
    """Share of the peak that the largest matrix products reach."""
    matrix_half: float
    """FLOPs of a product that reaches half of that."""
    attention_best: float
    """Share of the peak that the largest attention kernels reach."""
    attention_half: float
    """FLOPs of an attention kernel that reaches half of that."""
    memory_bytes: int
    memory_rate: float
    """Bytes read or written."""
    node_devices: int
    """Devices that the faster links join."""
    link_rate: float
    """Bytes that a device sends inside a node."""
    link_seconds: float
    """What a call takes in addition."""
    network_rate: float
    """Bytes that a device sends to other nodes."""
    network_seconds: float

    def matrix_seconds(self, flops: float, calls: float) -> float:
        """Time of matrix products: each starts slowly, so that efficiency grows with its size.

        A product of w FLOPs has the efficiency matrix_best * w / (w + matrix_half).
        """
        return (flops + calls * self.matrix_half) / (self.peak_flops * self.matrix_best)

    def attention_seconds(self, flops: float, calls: float) -> float:
        """The same for attention kernels."""
        return (flops + calls * self.attention_half) / (self.peak_flops * self.attention_best)


def device_names() -> list[str]:
    """Devices that have a table in this package."""
    return sorted(path.stem.upper() for path in _FOLDER.glob("*.yaml"))


def load_device(name: str) -> Device:
    """The constants of a device.

    Args:
        name: a table of this package (any case), or the path of a YAML file with the same keys.

    Raises:
        ValueError: there is no such table or file, or a constant is missing, unknown or no positive number.
    """
    path = _FOLDER / f"{name.lower()}.yaml"
    if name.upper() not in device_names():
        path = Path(name)
        if not path.is_file():
            known = ", ".join([*device_names(), *KINDS])
            raise ValueError(f"--device {name!r}: expected one of {known}, or a YAML file of constants")
    return _device(name, read_yaml(path, "device file"))


def _device(name: str, content: Any) -> Device:
    where = f"device file {name}"
    expected = [field.name for field in fields(Device) if field.name != "name"]
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected constants as 'name: value', one a line: {', '.join(expected)}")
    problems = [f"no {key}" for key in expected if key not in content]
    problems += [f"unknown {key!r}" for key in content if key not in expected]
    problems += [problem for key in expected if key in content for problem in _problem(key, content[key])]
    if problems:
        raise ValueError(f"{where}: {'; '.join(problems)}; mindspeed_vita/planner/devices/h100.yaml shows every constant")
    values: dict[str, Any] = {
        key: value if key == "kind" else int(value) if key in _COUNTS else float(value) for key, value in content.items()
    }
    return Device(name=name, **values)


def _problem(key: str, value: Any) -> list[str]:
    if key == "kind":
        return [] if value in KINDS else [f"kind is {value!r}, expected {' or '.join(KINDS)}"]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value <= sys.float_info.max:  # YAML reads whole numbers that no float holds
        return [f"{key} is {value!r}, expected a positive number (YAML reads 1e9 as text; write 1.0e+9)"]
    if key in _SHARES and value > 1:
        return [f"{key} is {value}, expected a share of the peak: at most 1"]
    if key in _COUNTS and value != int(value):
        return [f"{key} is {value}, expected a whole number"]
    return []
