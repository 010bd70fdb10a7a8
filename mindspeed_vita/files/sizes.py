"""Sizes as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_size(text: str, option: str = "--max-shard-size") -> int:
    """Bytes of "5GB", "200MB" or a plain number.

    Args:
        text: what was given.
        option: where, for the message.

    Raises:
        ValueError: anything else, or zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB|)", text.strip().upper())
    if match is None or not float(match.group(1)):
        raise ValueError(f"{option} is {text!r}; expected something like 5GB or 200MB")
    return max(1, int(float(match.group(1)) * _UNITS[match.group(2)]))
