"""Sizes as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str, option: str = "--max-shard-size", *, unit_needed: bool = False) -> int:
    """Bytes of "5GB", "200MB", "64GiB" or a plain number.

    Args:
        text: what was given.
        option: where, for the message.
        unit_needed: refuse a plain number. Nobody means bytes where the memory of a device is asked for.

    Raises:
        ValueError: anything else, or zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B|B|)", text.strip().upper())
    if match is None or not float(match.group(1)):
        raise ValueError(f"{option} is {text!r}; expected something like 5GB, 200MB or 64GiB")
    if unit_needed and not match.group(2):
        raise ValueError(f"{option} is {text!r}, which has no unit; expected something like 5GB, 200MB or 64GiB")
    return max(1, int(float(match.group(1)) * _UNITS[match.group(2)]))
