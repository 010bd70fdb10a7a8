"""Adapters: files of samples in other layouts than JSON, read as rows of the one schema."""

from mindspeed_vita.data.formats.registry import (
    JSON_SUFFIXES,
    Adapter,
    PartReader,
    adapter_for,
    format_names,
    format_of,
    holds_media,
    part_reader,
    register_format,
    rules_of,
    suffix_of,
)

__all__ = [
    "JSON_SUFFIXES",
    "Adapter",
    "PartReader",
    "adapter_for",
    "format_names",
    "format_of",
    "holds_media",
    "part_reader",
    "register_format",
    "rules_of",
    "suffix_of",
]
