"""The ledger: patches/manifest.toml as checked, typed entries. It says what is changed in other packages and why; it changes nothing."""

from __future__ import annotations

import sys
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Optional

from mindspeed_vita.integration.patching import signatures

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FORMAT = 1
MOST_PATCHES = 8
"""More would be a fork in disguise."""
WRAPPER_ENDINGS = ("wrapper", "decorator")
"""MindSpeed's patch manager stacks functions whose names end so, and replaces by all others."""


@dataclass(frozen=True, kw_only=True)
class Declared:
    """A patch of the same target that upstream makes itself."""

    by: str
    """Dotted name of upstream's function."""
    when: str
    """`always`, or the flag that switches it on."""


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One function of upstream that we wrap or replace."""

    name: str
    """Short and unique."""
    target: str
    """Dotted name of the attribute that changes."""
    replacement: str
    """Dotted name of our function: with `wrap` it takes the function below and returns the new one."""
    kind: Literal["wrap", "replace"]
    upstream: str
    """Project that owns the target."""
    versions: tuple[str, ...]
    """Versions of that project it was written against."""
    signature: str
    """The target's, before anyone patches it."""
    why: str
    """Why no seam does."""
    until: str
    """The event that makes it unnecessary."""
    test: str
    """Its test, path::name."""
    defined: Optional[str] = None
    """Where the target is defined, if it is imported into the module the target names."""
    patched_upstream: tuple[Declared, ...] = ()
    """Patches of the target by MindSpeed or MindSpeed-LLM that ours goes on top of."""

    @property
    def definition(self) -> str:
        """Dotted name of the definition."""
        return self.defined or self.target


@dataclass(frozen=True, kw_only=True)
class Seam:
    """A function of upstream that is used as it is, so that no patch is needed."""

    target: str
    """Dotted name."""
    upstream: str
    """Project that owns it."""
    signature: str
    """The one we rely on."""
    use: str
    """What for."""


@dataclass(frozen=True, kw_only=True)
class Rebound:
    """Attributes of other packages that a function of ours sets by itself, outside of MindSpeed-LLM's patch manager."""

    by: str
    """Dotted name of our function that sets them."""
    targets: tuple[str, ...]
    """Dotted names of the attributes."""
    when: str
    """In which runs it happens."""
    why: str
    """What would fail without it."""
    until: str
    """The event that makes it unnecessary."""


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """A project that entries refer to."""

    project: str
    """Its name, and the name of its folder among checkouts."""
    package: str
    """What one imports."""
    version_file: str
    """File of a checkout that states the version."""
    versions: tuple[str, ...] = ()
    """Supported ones; empty where the number does not tell versions apart."""
    used_by: tuple[str, ...] = ()
    """Projects whose every import from this one is a seam, too many to list: the signature tables hold them."""


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Everything patches/ says."""

    folder: Path
    patches: tuple[Patch, ...]
    seams: tuple[Seam, ...]
    upstreams: tuple[Upstream, ...]
    rebound: tuple[Rebound, ...] = ()

    @property
    def tables(self) -> list[Path]:
        """The signature tables, one a set of versions."""
        return sorted((self.folder / "signatures").glob("*.json"))


def ledger_folder() -> Path:
    """The folder of the ledger: beside the package in the repository, inside it when installed from a wheel.

    Raises:
        ValueError: neither is there.
    """
    package = Path(__file__).resolve().parents[2]
    for folder in (package.parent / "patches", package / "patches"):
        if (folder / "manifest.toml").is_file():
            return folder
    raise ValueError(f"no patches/manifest.toml beside or in {package}; install the package again")


def load_ledger(folder: Optional[Path] = None) -> Ledger:
    """Reads and checks the ledger.

    Args:
        folder: with manifest.toml and signatures/; default: the project's own.

    Raises:
        ValueError: the file is not TOML, or an entry is wrong; names it, and what is expected.
    """
    folder = folder or ledger_folder()
    path = folder / "manifest.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from None
    unknown = sorted(set(data) - {"format", "patch", "rebound", "seam", "upstream"})
    if data.get("format") != FORMAT or unknown:
        expected = f"format {FORMAT}, tables patch, rebound, seam, upstream"
        raise ValueError(f"{path}: format {data.get('format')!r}, tables {unknown}; expected {expected}")
    ledger = Ledger(
        folder=folder,
        patches=tuple(_entry(Patch, entry, path) for entry in data.get("patch", [])),
        seams=tuple(_entry(Seam, entry, path) for entry in data.get("seam", [])),
        upstreams=tuple(_entry(Upstream, entry, path) for entry in data.get("upstream", [])),
        rebound=tuple(_entry(Rebound, entry, path) for entry in data.get("rebound", [])),
    )
    _check(ledger, path)
    return ledger


def _entry(kind: type, values: dict[str, Any], path: Path) -> Any:
    name = next((values[key] for key in ("name", "target", "project", "by") if key in values), "without a name")
    known = {each.name: each for each in fields(kind)}
    unknown = sorted(set(values) - set(known))
    missing = sorted(key for key, each in known.items() if key not in values and each.default is MISSING)
    if unknown or missing:
        raise ValueError(f"{path}: {kind.__name__.lower()} {name}: unknown keys {unknown}, missing keys {missing}")
    read = dict(values)
    for key, value in values.items():
        if isinstance(value, list):
            read[key] = tuple(_entry(Declared, part, path) if isinstance(part, dict) else part for part in value)
        elif not isinstance(value, str) or not value.strip():
            raise ValueError(f"{path}: {kind.__name__.lower()} {name}: {key} is {value!r}; expected text")
    return kind(**read)


def _check(ledger: Ledger, path: Path) -> None:
    problems: list[str] = []
    if len(ledger.patches) > MOST_PATCHES:
        problems.append(f"{len(ledger.patches)} patches; at most {MOST_PATCHES}: find a seam for one")
    projects = {upstream.project: upstream for upstream in ledger.upstreams}
    for attribute in ("name", "target"):
        values = [getattr(patch, attribute) for patch in ledger.patches]
        problems += [f"two patches with {attribute} {value}" for value in sorted({value for value in values if values.count(value) > 1})]
    for patch in ledger.patches:
        stacks = patch.replacement.endswith(WRAPPER_ENDINGS)
        if patch.kind not in ("wrap", "replace"):
            problems.append(f"patch {patch.name}: kind {patch.kind!r}; expected wrap or replace")
        elif stacks != (patch.kind == "wrap"):
            endings = " or ".join(WRAPPER_ENDINGS)
            problems.append(f"patch {patch.name}: {patch.kind} by {patch.replacement}; only wrappers' names end in {endings}")
        behind = set(projects[patch.upstream].versions) - set(patch.versions) if patch.upstream in projects else set()
        if behind:
            problems.append(f"patch {patch.name}: {patch.upstream} {sorted(behind)} is supported, but not among the patch's versions")
        if not patch.replacement.startswith("mindspeed_vita.integration."):
            problems.append(f"patch {patch.name}: replacement {patch.replacement}; expected a function in mindspeed_vita.integration")
    rebound = [target for entry in ledger.rebound for target in entry.targets]
    problems += [f"two entries rebind {target}" for target in sorted({target for target in rebound if rebound.count(target) > 1})]
    for upstream in ledger.upstreams:
        strangers = [name for name in upstream.used_by if name not in projects]
        problems += [f"upstream {upstream.project}: used_by {name!r}; expected a project" for name in strangers]
    entries: list[Patch | Seam] = [*ledger.patches, *ledger.seams]
    for entry in entries:
        if entry.upstream not in projects:
            problems.append(f"{entry.target}: upstream {entry.upstream!r}; expected one of {sorted(projects)}")
        try:
            signatures.difference(entry.signature, entry.signature)
        except ValueError as error:
            problems.append(f"{entry.target}: {error}")
    if problems:
        raise ValueError(f"{path}: " + "; ".join(problems))

