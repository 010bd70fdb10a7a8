"""Where weights come from: a record beside them of the run or conversion that made them, and of everything before it.

A record holds the records of its parents whole. It says all of its history even where the parents are long gone.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Optional

import mindspeed_vita
from mindspeed_vita.checkpoint.native import atomic
from mindspeed_vita.checkpoint.native.step_folder import find, flat, load_state, saved_recipe, weights_identity
from mindspeed_vita.config import Recipe, recipe_to_dict
from mindspeed_vita.wording import printable

LINEAGE = "lineage.json"
"""Name of the record, in a step folder, an export, or a folder of MindSpeed-LLM."""
_PLACES = frozenset(
    {
        *("checkpoint.directory", "checkpoint.init_from", "checkpoint.store", "lora.base"),
        *("data.index", "data.media_root", "data.mixture", "data.store_cache", "data.tokenizer"),
    }
)
"""Keys that say where something lies. The data's fingerprint and the parents say what lay there."""
GENERATIONS = 200
"""Most records on the way from a checkpoint to the first of its ancestors."""


class TooLong(ValueError):
    """A history has more than GENERATIONS generations."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a run was continued with, where that was not what it began with."""

    step: int
    """The step it was continued from."""
    code: str
    """Version that continued it."""
    settings: Mapping[str, Sequence[Any]]
    """By key of the recipe: the value before and the value from then on."""


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """One run, one conversion, or weights whose history nobody wrote down."""

    made_by: str
    """training, conversion or unknown."""
    name: str
    """Of the run; the format that a conversion wrote; the folder of unknown weights."""
    code: str = ""
    """Version of this project that wrote it, with the commit where it is a checkout."""
    recipe: str = ""
    """Hash of the run's recipe, without the places where files lie."""
    data: str = ""
    """Fingerprint of the run's data and packing plan."""
    step: Optional[int] = None
    """Steps done."""
    weights: str = ""
    """What tells unknown weights from others, see Source.identity."""
    settings: Mapping[str, Any]
    """Of a conversion."""
    changes: tuple[Change, ...] = ()
    """Oldest first."""
    parents: tuple[Lineage, ...] = ()
    """What it was made from."""

    def __post_init__(self) -> None:
        """Refuses a history that is too long to be written and read again.

        Raises:
            TooLong: it has more than GENERATIONS generations.
        """
        if self.generations > GENERATIONS:
            raise TooLong(
                f"the history of {self.name!r} has more than {GENERATIONS} generations, and no record can hold more; make a copy of the "
                f"weights that it comes from, and remove {LINEAGE} from the copy (in a native step also its entry in {atomic.CHECKSUMS}): "
                "a new history begins there, and the original keeps the old one"
            )

    @property
    def generations(self) -> int:
        """Records on the longest way to an ancestor, this one included."""
        return 1 + max((parent.generations for parent in self.parents), default=0)

    @property
    def identity(self) -> str:
        """Differs where anything in the history differs. 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def encode(self) -> dict[str, Any]:
        """As JSON holds it."""
        return json.loads(json.dumps(asdict(self)))


def decode(content: Mapping[str, Any]) -> Lineage:
    """What `encode` made. Keys that a later version added are left out.

    Raises:
        ValueError: it is no lineage.
    """
    try:
        known = {field.name for field in fields(Lineage)}
        values = {key: value for key, value in content.items() if key in known}
        values["changes"] = tuple(Change(**change) for change in values.get("changes", ()))
        values["parents"] = tuple(decode(parent) for parent in values.get("parents", ()))
        found = Lineage(**values)
        _check(found)
        return found
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no record of a lineage ({error})") from error


def _check(lineage: Lineage) -> None:
    """Refuses values of other types than the fields have.

    Raises:
        TypeError: a value is of another type.
    """
    texts = (lineage.made_by, lineage.name, lineage.code, lineage.recipe, lineage.data, lineage.weights)
    whole = lineage.step is None or (isinstance(lineage.step, int) and not isinstance(lineage.step, bool))
    changes = all(
        isinstance(change.step, int)
        and isinstance(change.code, str)
        and isinstance(change.settings, Mapping)
        and all(isinstance(both, (list, tuple)) and len(both) == 2 for both in change.settings.values())
        for change in lineage.changes
    )
    if not (all(isinstance(text, str) for text in texts) and whole and isinstance(lineage.settings, Mapping) and changes):
        raise TypeError("a value is of another type than it should be")


def read(folder: Path) -> Optional[Lineage]:
    """The record in a folder; None where there is none.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / LINEAGE
    if not path.is_file():
        return None
    try:
        return decode(json.loads(path.read_text(encoding="utf-8")))
    except TooLong as error:
        raise TooLong(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        of_step = (folder / atomic.CHECKSUMS).is_file()  # they name the record, so a step without it is damaged
        advice = "restore the step from a copy" if of_step else "restore the file, or remove it: the history is then unknown"
        raise ValueError(f"{path}: {error}; {advice}") from error


def of_step(folder: Path) -> Lineage:
    """The record of a native step. Of a step of an earlier version, what the step says itself.

    Raises:
        ValueError: the record is damaged.
    """
    found = read(folder)
    if found is not None:
        return found
    recipe, has_state = saved_recipe(folder), (folder / "state.json").is_file()
    return Lineage(
        made_by="unknown",
        name=str(recipe.get("name", folder.name)),
        recipe=_hash_of(recipe),
        data=load_state(folder).fingerprint if has_state else "",
        step=atomic.step_of(folder),
        weights=weights_identity(folder),
        settings={},
    )


def of_checkpoint(folder: Path) -> Lineage:
    """The record of a checkpoint of any format. Weights without a record are told apart by the names and sizes of their files.

    Args:
        folder: run or step folder, export, Hugging Face or peft folder, or what MindSpeed-LLM or Megatron saved.

    Raises:
        ValueError: no checkpoint there, or its record is damaged.
    """
    from mindspeed_vita.checkpoint.megatron import dist_files, rank_files

    if (folder / "config.json").is_file():
        return read(folder) or _unknown(folder, folder.glob("*.safetensors"))
    if (folder / "adapter_config.json").is_file():
        return read(folder) or _unknown(folder, folder.glob("adapter_model.*"))
    if not rank_files.is_mindspeed(folder):
        return of_step(find(folder))
    if dist_files.is_distributed(folder):
        return _unknown(folder, folder.rglob("*.distcp"))
    return of_state(folder, rank_files.run_state(folder))


def of_state(folder: Path, state: Optional[Mapping[str, Any]]) -> Lineage:
    """The record in what this package keeps in a checkpoint of MindSpeed-LLM.

    Args:
        folder: the checkpoint.
        state: as rank_files.run_state.

    Raises:
        ValueError: the record is damaged.
    """
    from mindspeed_vita.checkpoint.megatron.rank_files import rank_files

    if state and "lineage" in state:
        try:
            return decode(state["lineage"])
        except ValueError as error:
            raise ValueError(f"{folder}: {error}; restore the checkpoint") from error
    return _unknown(folder, rank_files(folder).values())


def begun(recipe: Recipe, *, data: str, start: Optional[Lineage], adapters: Optional[Lineage] = None) -> Lineage:
    """The record of a run that begins.

    Args:
        recipe: the run.
        data: fingerprint of its data.
        start: record of the weights that it begins with; None: they are random.
        adapters: record of the adapters over them that it begins with; None: there are none, or fresh ones.
    """
    return Lineage(
        made_by="training",
        name=recipe.name,
        code=code_version(),
        recipe=_hash_of(recipe_to_dict(recipe)),
        data=data,
        settings={},
        parents=tuple(record for record in (start, adapters) if record is not None),
    )


def of_beginning(recipe: Recipe, *, data: str, origins: Sequence[Path]) -> Lineage:
    """The record of a run that begins.

    Args:
        recipe: the run.
        data: fingerprint of its data.
        origins: folders of the weights that it begins with, and of adapters over them; none where the weights are random.

    Raises:
        ValueError: a record there is damaged.
    """
    start, adapters = [*(of_checkpoint(folder) for folder in origins), None, None][:2]
    return begun(recipe, data=data, start=start, adapters=adapters)


def continued(before: Lineage, recipe: Recipe, *, step: int, saved: Mapping[str, Any], data: str) -> Lineage:
    """The record of a run that goes on.

    Args:
        before: record of what it goes on from.
        recipe: what the run is told now.
        step: steps done.
        saved: the recipe there, as nested plain values.
        data: fingerprint of its data.
    """
    if before.made_by == "conversion":  # of another program's run, or of another layout's
        return replace(begun(recipe, data=data, start=before), step=step)
    now = recipe_to_dict(recipe)
    settings, code = _differences(_settings(saved), _settings(now)), code_version()
    last = before.changes[-1].code if before.changes else before.code
    if not settings and code == last:
        return before
    return replace(before, recipe=_hash_of(now), changes=(*before.changes, Change(step=step, code=code, settings=settings)))


def converted(to: str, settings: Mapping[str, Any], parents: Sequence[Lineage]) -> Lineage:
    """The record of what a conversion writes.

    Args:
        to: format that is written.
        settings: of the conversion, as JSON.
        parents: records of what was read.
    """
    return Lineage(made_by="conversion", name=to, code=code_version(), settings=dict(settings), parents=tuple(parents))


def history(lineage: Lineage) -> Iterator[Lineage]:
    """The record and all records in it."""
    yield lineage
    for parent in lineage.parents:
        yield from history(parent)


def tree(lineage: Lineage) -> Iterator[str]:
    """A line for each record, the parents indented below what was made from them; further lines for changed settings."""
    yield from _lines(lineage, "", "")


def _lines(lineage: Lineage, first: str, rest: str) -> Iterator[str]:
    yield f"{first}{_describe(lineage)}"
    below = "│  " if lineage.parents else "   "
    for change in lineage.changes:
        told = ", ".join(f"{key}: {before} -> {after}" for key, (before, after) in change.settings.items())
        yield f"{rest}{below}" + printable(f"continued from step {change.step} by {change.code}{'; ' + told if told else ''}")
    for number, parent in enumerate(lineage.parents, 1):
        last = number == len(lineage.parents)
        yield from _lines(parent, f"{rest}{'└─ ' if last else '├─ '}", f"{rest}{'   ' if last else '│  '}")


def _describe(lineage: Lineage) -> str:
    said = [f"{lineage.name} ({lineage.made_by})", f"id {lineage.identity}"]
    if lineage.step is not None:
        said.insert(1, f"step {lineage.step}")
    hashes = {"recipe": lineage.recipe, "data": lineage.data, "weights": lineage.weights}
    said += [f"{key} {value[:12]}" for key, value in hashes.items() if value]
    said += [f"{key} {value}" for key, value in lineage.settings.items()]
    return printable(", ".join((*said, f"code {lineage.code or 'unknown'}")))


def code_version() -> str:
    """Version of this project, and in a git checkout of it the commit, with -dirty where files differ from it."""
    root = Path(mindspeed_vita.__file__).parents[1]
    if not (root / ".git").exists():
        return mindspeed_vita.__version__
    ask = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        told = subprocess.run(ask, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):  # no git here
        return mindspeed_vita.__version__
    return f"{mindspeed_vita.__version__}+{told.stdout.strip()}" if told.returncode == 0 else mindspeed_vita.__version__


def _unknown(folder: Path, files: Iterable[Path]) -> Lineage:
    told = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in files)
    return Lineage(made_by="unknown", name=folder.resolve().name, weights=hashlib.sha256(repr(told).encode()).hexdigest(), settings={})


def _hash_of(recipe: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(_settings(recipe), sort_keys=True).encode()).hexdigest()


def _settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's settings by dotted key, without places."""
    return {key: value for key, value in flat(recipe).items() if key not in _PLACES}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Keys in both whose values differ. A key that only one version of the project knows says nothing about the run."""
    return {key: [before[key], now[key]] for key in sorted(before.keys() & now.keys()) if before[key] != now[key]}
