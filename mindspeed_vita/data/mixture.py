"""The mixture: which files make up a data set and how much of each. The released Long-VITA YAML files load as they are."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mindspeed_vita.config import RepeatedKey, expand_variables, load_yaml, yaml_problem
from mindspeed_vita.data.data_paths import find_files, is_one_file
from mindspeed_vita.data.formats import format_names, format_of
from mindspeed_vita.files.store_cache import StoreCache

_ENTRY_KEYS = ("ratio", "num", "data_paths", "format")


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """One entry of the mixture that is switched on."""

    name: str
    """Key in the YAML; what same-source packing and per-source losses go by."""
    ratio: float
    """Share of each file's rows drawn per epoch; above 1 repeats rows."""
    num: int | None
    """Most rows drawn from each file."""
    paths: tuple[str, ...]
    """Files that exist."""
    format: str = ""
    """Name of the adapter that reads them; empty: by their suffix."""

    def draw(self, place: int, num_rows: int, seed: int) -> np.ndarray:
        """Rows of the place-th file drawn for every epoch: int64, shuffled, each as often as any other give or take one."""
        used = int(num_rows * self.ratio)
        used = used if self.num is None else min(used, self.num)
        if not num_rows:
            return np.empty(0, dtype=np.int64)
        key = [seed, zlib.crc32(self.name.encode()), place]
        return np.random.default_rng(key).permutation(num_rows)[np.arange(used) % num_rows]


def load_mixture(path: str | Path, cache: StoreCache | None = None) -> tuple[SourceSpec, ...]:
    """Reads ``dataset: {name: {ratio, num, data_paths}}``; other top-level keys are ignored.

    An entry is off with ratio 0, num 0, or no paths. ${VAR} and ${VAR:-default} in the paths of entries that are on expand from the
    environment. Paths may name folders and patterns (data_paths.find_files). Relative paths start from the working directory or, where
    nothing lies there, from the folder of the mixture. Addresses in object stores (s3://bucket/folder) may stand for paths.

    Args:
        path: of the YAML file.
        cache: where files of object stores are fetched to; None refuses their addresses.

    Raises:
        StoreError: a store cannot be reached, or refuses.
        ValueError: the file is missing or no such YAML, an entry is malformed, a file of an entry that is on is missing, or
            every entry is off.
    """
    if not str(path):
        raise ValueError("data.mixture is empty; set it to a YAML file that names the data (docs/data.md)")
    path = Path(path)
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"mixture {str(path)!r} cannot be read ({error.strerror}); expected a YAML file that names the data (docs/data.md). "
            "Correct data.mixture (of held-out data: eval.mixture)"
        ) from error
    except RepeatedKey as error:
        raise ValueError(f"mixture {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"mixture {path} is no YAML: {yaml_problem(error)}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"mixture {path} is no YAML: no text in UTF-8 ({error}); save it as UTF-8") from error
    entries = content.get("dataset") if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        raise ValueError(f"mixture {path}: found no mapping 'dataset'; expected dataset: {{name: {{ratio, num, data_paths}}}}")
    specs, missing = [], []
    for name, entry in entries.items():
        spec = _entry(str(name), entry, f"mixture {path}: dataset.{name}")
        if spec is None:
            continue
        files, absent = _locate(spec, path.parent, cache, f"mixture {path}: dataset.{name}.data_paths")
        missing += [f"{name}: {file}" for file in absent]
        specs.append(replace(spec, paths=files))
    if missing:
        shown = "; ".join(missing[:5]) + (f"; and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ValueError(
            f"mixture {path}: found no file for {shown}; looked in the working directory {Path.cwd()} and in {path.parent.resolve()}; "
            "correct the path or set ratio: 0"
        )
    if not specs:
        raise ValueError(f"mixture {path}: every entry is off (ratio 0, num 0 or no data_paths); switch at least one on")
    return tuple(specs)


def _entry(name: str, entry: Any, where: str) -> SourceSpec | None:
    if not _is_text(name):
        raise ValueError(f"{ascii(where)}: the name holds half a character; write the whole one")
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: found {entry!r}, expected a mapping with ratio, num and data_paths")
    unknown = sorted(str(key) for key in entry if key not in _ENTRY_KEYS)
    if unknown:
        raise ValueError(f"{where}: found unknown keys {', '.join(unknown)}; expected {', '.join(_ENTRY_KEYS)}")
    ratio, num, paths = entry.get("ratio", 1), entry.get("num"), entry.get("data_paths")
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < float("inf"):
        raise ValueError(f"{where}.ratio: found {ratio!r}, expected a number from 0 up")
    if num is not None and (isinstance(num, bool) or not isinstance(num, int) or num < 0):
        raise ValueError(f"{where}.num: found {num!r}, expected a whole number from 0 up")
    if paths is not None and (not isinstance(paths, list) or not all(isinstance(file, str) for file in paths)):
        raise ValueError(f"{where}.data_paths: found {paths!r}, expected a list of files")
    if ratio == 0 or num == 0 or not paths:
        return None
    for file in paths:
        if not file or not _is_text(file):
            raise ValueError(f"{where}.data_paths: found {ascii(file)}, expected the path of a file or folder, or a pattern")
    files = tuple(expand_variables(file, where, "data_paths") for file in paths)
    named = entry.get("format") or ""
    if named and named not in format_names():
        raise ValueError(f"{where}.format: found {named!r}, expected one of {', '.join(format_names())}, or a plugin that registers it")
    return SourceSpec(name=name, ratio=float(ratio), num=num, paths=files, format=named)


def _is_text(text: str) -> bool:
    """Whether a text has neither half a character (of a surrogate pair) nor a NUL."""
    return "\0" not in text and not any(0xD800 <= ord(char) < 0xE000 for char in text)


def _locate(spec: SourceSpec, folder: Path, cache: StoreCache | None, where: str) -> tuple[tuple[str, ...], list[str]]:
    """The files of an entry, and what of its data_paths names none."""
    files: list[str] = []
    missing: list[str] = []
    for entry in spec.paths:
        try:
            found, absent = find_files(entry, folder, spec.format, cache)
            for file in found:
                format_of(file, spec.format)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if not is_one_file(entry, folder):
            known = {os.path.realpath(file) for file in files}
            again = next((file for file in found if os.path.realpath(file) in known), None)
            if again is not None:
                raise ValueError(f"{where}: {entry!r} names {again} once more; name each file once (a ratio above 1 repeats rows)")
        files += found
        missing += absent
    return tuple(files), missing
