"""YAML in which a key may stand once in a mapping. PyYAML takes the last of several and drops the others without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"


class RepeatedKey(yaml.YAMLError):
    """A key stands twice in one mapping."""


class _Loader(yaml.SafeLoader):
    # looked for while nodes are composed: later, merges (<<) add keys that may be overruled
    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], yaml.ScalarNode] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            other = first.setdefault((key.tag, key.value), key)
            if other is not key:
                lines = f"line {key.start_mark.line + 1}: found the key {key.value!r} again, first in line {other.start_mark.line + 1}"
                raise RepeatedKey(f"{lines}; keep one of them, or rename it")
        return node


def read_yaml(path: Path, what: str) -> Any:
    """What a YAML file holds.

    Args:
        path: the file.
        what: it is, for messages: recipe, pipeline.

    Raises:
        ValueError: there is no such file, or it is no YAML in UTF-8.
    """
    if path.is_dir():
        raise ValueError(f"{what} {path}: is a folder; expected a YAML file")
    if not path.is_file():
        raise ValueError(f"{what} {path}: no such file")
    try:
        return load_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} {path}: no text in UTF-8 ({error}); save it as UTF-8") from error
    except RepeatedKey as error:
        raise ValueError(f"{what} {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{what} {path}: not valid YAML: {yaml_problem(error)}") from error


def yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong with a text that is no YAML, and where, in one line."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    said = [part for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part]
    return f"line {mark.line + 1}, column {mark.column + 1}: {', '.join(said)}"


def load_yaml(text: str) -> Any:
    """What a YAML text holds.

    Raises:
        RepeatedKey: a mapping has a key twice.
        yaml.YAMLError: it is no YAML.
    """
    return yaml.load(text, _Loader)
