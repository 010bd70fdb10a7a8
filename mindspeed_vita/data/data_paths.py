"""Which files an entry of data_paths means: a file, a folder, or a pattern with braces and wildcards."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from mindspeed_vita.addresses import is_address
from mindspeed_vita.data.formats import format_of
from mindspeed_vita.files.store_cache import StoreCache
from mindspeed_vita.files.stores import NoBucket, NotThere, Store, Stored
from mindspeed_vita.hf.frames import natural_key

_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")
_NO_DATA = ("vita_index", "__MACOSX", "@eaDir")
"""Folders that hold none, whatever lies in them: our own index has Parquet files. So have those whose names begin with a dot."""
MOST_FILES = 1_000_000
"""Files that one entry may name with braces."""


def expand_braces(text: str) -> list[str]:
    """Texts that braces stand for, in their order: a{b,c} gives ab, ac; {08..10} gives 08, 09, 10. Other braces stay.

    Raises:
        ValueError: more than MOST_FILES.
    """
    for start in (place for place, char in enumerate(text) if char == "{"):
        choices, stop = _choices(text, start)
        if choices:
            rest = expand_braces(text[stop:])
            if len(choices) * len(rest) > MOST_FILES:
                raise ValueError(f"{text}: the braces stand for more than {MOST_FILES:,} files; name a folder or a pattern with *")
            return [text[:start] + choice + end for choice in choices for end in rest]
    return [text]


def _choices(text: str, start: int) -> tuple[list[str], int]:
    """What the brace at a place stands for, and where the text goes on behind it; nothing where it is an ordinary character."""
    depth, begin, parts = 0, start + 1, []
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0 or (depth == 1 and text[place] == ","):
            parts.append(text[begin:place])
            begin = place + 1
        if depth == 0:
            break
    else:
        return [], start
    if len(parts) > 1:
        return [choice for part in parts for choice in expand_braces(part)], begin
    bounds = _RANGE.fullmatch(parts[0])
    return (_range(bounds[1], bounds[2]) if bounds else []), begin


def _range(first: str, last: str) -> list[str]:
    """Numbers from first to last, as wide as the wider one where either begins with 0."""
    if abs(int(last) - int(first)) >= MOST_FILES:
        raise ValueError(f"{{{first}..{last}}}: stands for more than {MOST_FILES:,} files; name a folder or a pattern with *")
    step = 1 if int(last) >= int(first) else -1
    width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
    return [str(number).zfill(width) for number in range(int(first), int(last) + step, step)]


def find_files(entry: str, folder: Path, format_name: str = "", cache: StoreCache | None = None) -> tuple[list[str], list[str]]:
    """Files that an entry of data_paths names, and what of it names none.

    What is no file by its plain name is a folder or a pattern. A folder stands for all data files below it. In a pattern, braces are
    expanded as a shell does, in the order given; * ? and [] match names, and ** any depth of folders. What a folder or a pattern with
    wildcards gives is sorted naturally: part-2 before part-10.

    Args:
        entry: with its variables expanded. A relative one starts from the working directory or, where nothing lies there, from folder.
        folder: of the mixture.
        format_name: of the mixture's entry. With one, a folder stands for all of its files, whatever their suffix.
        cache: where files of object stores are fetched to; None refuses their addresses.

    Raises:
        StoreError: a store cannot be reached, or refuses.
        ValueError: a folder has data files of several formats, or the braces stand for too many files.
    """
    found: list[str] = []
    missing: list[str] = []
    if is_address(entry):
        if cache is None:
            raise ValueError(f"{entry} is an address in an object store, which is not read here; name a file or a folder")
        for address in expand_braces(entry):
            here = _stored(address, format_name, cache)
            found += here
            if not here:
                missing.append(address)
        return found, missing
    for text in [entry] if _starts(entry, folder) else expand_braces(entry):
        here = _named(text, folder, format_name)
        found += here
        if not here:
            missing.append(text)
    return found, missing


def is_one_file(entry: str, folder: Path) -> bool:
    """Whether an entry is the plain name of a file."""
    return any(place.is_file() for place in _starts(entry, folder))


def _starts(text: str, folder: Path) -> list[Path]:
    """Where a plain path leads: from the working directory, then from the mixture's folder; only what exists."""
    try:
        return [place for place in (Path(text), folder / text) if place.exists()]
    except (OSError, ValueError):  # too long for a name, or with half a character
        return []


def _named(text: str, folder: Path, format_name: str) -> list[str]:
    for place in _starts(text, folder):
        if place.is_file():
            return [str(place)]
        return _below(place, format_name)
    if not glob.has_magic(text):
        return []
    for pattern in dict.fromkeys((text, os.path.join(glob.escape(str(folder)), text))):
        matches = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path) and not _hidden(path)]
        if matches:
            return sorted(matches, key=natural_key)
    return []


def _hidden(path: str) -> bool:
    return any(part in _NO_DATA for part in Path(path).parts)


def _below(top: Path, format_name: str) -> list[str]:
    """Data files below a folder."""
    files: list[str] = []
    for parent, folders, names in os.walk(top):
        folders[:] = [name for name in folders if name not in _NO_DATA and not name.startswith(".")]
        files += [os.path.join(parent, name) for name in names if not name.startswith(".")]
    return _readable(sorted(files, key=natural_key), str(top), format_name)


def _stored(address: str, format_name: str, cache: StoreCache) -> list[str]:
    """Files of a store that an address names, fetched: an object, a folder, or a pattern."""
    top, found = found_in_store(address)
    names = [name for name in found if not _hidden(name) and not any(part.startswith(".") for part in name.split("/"))]
    names = _readable(sorted(names, key=natural_key), top.address, format_name) if top.address == address.rstrip("/") else names
    return cache.files(top, {name: found[name] for name in sorted(names, key=natural_key)})


def found_in_store(address: str) -> tuple[Store, dict[str, Stored]]:
    """The folder that an address starts from, and what it names below it.

    Raises:
        StoreError: the store cannot be reached, or refuses.
    """
    address = address.rstrip("/")
    if glob.has_magic(address):
        start = next(place for place, part in enumerate(address.split("/")) if glob.has_magic(part))
        top = Store("/".join(address.split("/")[:start]))
        return top, top.matching("/".join(address.split("/")[start:]))
    above, _, name = address.rpartition("/")
    try:
        if above.endswith("/"):  # a whole bucket
            return Store(address), Store(address).files()
        found = Store(above).about(name)
    except NoBucket:
        raise
    except NotThere:
        return Store(address), {}
    return (Store(address), Store(address).files()) if found is None else (Store(above), {name: found})


def _readable(files: list[str], top: str, format_name: str) -> list[str]:
    """Those of a folder's files that are data files."""
    if format_name:
        return files
    formats: dict[str, str] = {}
    readable = []
    for file in files:
        try:
            formats.setdefault(format_of(file), file)
        except ValueError:  # a picture, a readme: no data file
            continue
        readable.append(file)
    if len(formats) > 1:
        examples = ", ".join(f"{name} ({file.removeprefix(top).lstrip('/')})" for name, file in sorted(formats.items()))
        raise ValueError(f"{top}: the folder holds files of several formats: {examples}; say which with a pattern, as {top}/**/*.parquet")
    return readable
