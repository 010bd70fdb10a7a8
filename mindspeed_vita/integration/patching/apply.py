"""Applies the ledger to imported modules: all checks first, then all patches, or nothing at all."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Callable, Optional, Protocol, Sequence

from mindspeed_vita.integration.patching import live, signatures
from mindspeed_vita.integration.patching.ledger import Ledger, Patch, load_ledger
from mindspeed_vita.integration.patching.starting import wrong_versions


class PatchManager(Protocol):
    """What is used of MindSpeed's MindSpeedPatchesManager."""

    def register_patch(self, orig_func_name: str, new_func: Any = None, force_patch: bool = False, create_dummy: bool = False) -> None:
        """Registers one patch."""

    def apply_patches(self) -> None:
        """Applies what was registered."""


@dataclass(frozen=True, kw_only=True)
class AppliedPatch:
    """A patch that is in place."""

    name: str
    target: str
    kind: str
    replacement: str
    over: tuple[str, ...]
    """What lay there before, outermost first; of what is no longer there when asked again, only what wrappers have left a trace of."""


@dataclass(frozen=True, kw_only=True)
class _Step:
    patch: Patch
    place: live.Attribute
    replacement: Callable[..., Any]
    over: tuple[str, ...]


def apply_ledger(patch_manager: Optional[PatchManager] = None, *, ledger: Optional[Ledger] = None) -> list[AppliedPatch]:
    """Applies every patch of the ledger, or refuses before anything has changed. Doing it twice is the same as once.

    Args:
        patch_manager: MindSpeedPatchesManager, so that ours stack on MindSpeed's in its own books; None sets the attributes directly.
        ledger: default: the project's own.

    Returns:
        What is in place, in the ledger's order.

    Raises:
        ValueError: a target is missing, its signature changed, somebody the ledger does not know has patched it, or a module would keep the
            old function; all problems in one message, each with its remedy.
    """
    ledger = ledger or load_ledger()
    problems = wrong_versions(ledger)
    steps, done = [], {}
    for patch in ledger.patches:
        found = _examine(patch)
        if isinstance(found, _Step):
            if _is_ours(found):
                done[patch.name] = _applied(found, [layer for layer in found.over if layer != patch.replacement])
            else:
                steps.append(found)
        else:
            problems += found
    if problems:
        lines = "".join(f"\n  {number}. {problem}" for number, problem in enumerate(problems, start=1))
        raise ValueError(f"{len(problems)} problem(s) with {ledger.folder / 'manifest.toml'}, nothing was patched:{lines}")
    _apply(steps, patch_manager)
    done.update({step.patch.name: _applied(step, step.over) for step in steps})
    return [done[patch.name] for patch in ledger.patches]


def _examine(patch: Patch) -> _Step | list[str]:
    try:
        place = live.locate(patch.target)
    except live.Missing as missing:
        return [f"{patch.name}: {missing}; {patch.target} moved or went: {_rewrite(patch)}"]
    replacement = live.locate(patch.replacement).value
    over = tuple(live.layers(place.value))
    step = _Step(patch=patch, place=place, replacement=replacement, over=over)
    if _is_ours(step):
        return step
    problems = []
    found = signatures.of_object(live.bottom(place.value))
    changed = signatures.difference(patch.signature, found) if found else "Python knows no signature of it"
    if changed:
        problems.append(f"{patch.name}: {patch.target} has signature {found}, expected {patch.signature}: {changed}; {_rewrite(patch)}")
    problems += _undeclared(patch, over)
    # a module's attribute of the target's own name is rewritten with it
    namesakes = {f"{module}.{place.name}" for module in sys.modules}
    stale = [name for name in live.holders(place.value, leave_out=(place.owner, place.name)) if name not in namesakes]
    problems += [
        f"{patch.name}: {name} holds {patch.target} and would keep the old function; import that module after the patches, "
        f"or give the ledger an entry with target {name}"
        for name in stale
    ]
    return problems or step


def _undeclared(patch: Patch, over: Sequence[str]) -> list[str]:
    """Layers in the target that neither upstream's definition nor the ledger accounts for."""
    known = {patch.definition, *(declared.by for declared in patch.patched_upstream)}
    problems = [
        f"{patch.name}: {patch.target} is already patched by {layer}, which the ledger does not know; switch that patch off, "
        f"or read it and declare it under patched_upstream of {patch.name!r}"
        for layer in over
        if layer not in known
    ]
    for declared in patch.patched_upstream:
        if declared.when == "always" and declared.by not in over and not problems:
            problems.append(
                f"{patch.name}: {patch.target} is not patched by {declared.by}, as the ledger says it always is; "
                f"apply the ledger after mindspeed_llm's adaptor, or take the declaration out"
            )
    return problems


def _apply(steps: Sequence[_Step], manager: Optional[PatchManager]) -> None:
    changed: list[tuple[Any, str, Any]] = []
    try:
        for step in steps:
            changed += [(owner, name, step.place.value) for owner, name in _attributes(step.place)]
            if manager is None:
                _set(step)
            else:
                manager.register_patch(step.patch.target, step.replacement, force_patch=step.patch.kind == "replace")
        if manager is not None:
            manager.apply_patches()
        problems = [problem for step in steps for problem in _unfinished(step)]
        if problems:
            raise ValueError("the patches did not take, and were taken back: " + "; ".join(problems))
    except BaseException:
        for owner, name, value in changed:
            setattr(owner, name, value)
        raise


def _set(step: _Step) -> None:
    value = step.place.value
    new = step.replacement(live.function_of(value)) if step.patch.kind == "wrap" else step.replacement
    if isinstance(value, (staticmethod, classmethod)):
        new = type(value)(new)
    for owner, name in _attributes(step.place):
        setattr(owner, name, new)


def _attributes(place: live.Attribute) -> list[tuple[Any, str]]:
    """The attribute itself and its namesakes in other modules that hold the same object."""
    namesakes = [
        (module, place.name)
        for module in list(sys.modules.values())
        if isinstance(module, ModuleType) and module is not place.owner and vars(module).get(place.name) is place.value
    ]
    return [(place.owner, place.name), *namesakes]


def _unfinished(step: _Step) -> list[str]:
    """Why a patch is not in place."""
    now = vars(step.place.owner)[step.place.name]
    if now is step.place.value:
        return [f"{step.patch.target} is as it was; something took the patch off again"]
    stale = live.holders(step.place.value, leave_out=(step.place.owner, step.place.name))
    return [f"{name} still holds the old {step.patch.target}; import that module after the patches" for name in stale]


def _is_ours(step: _Step) -> bool:
    return step.patch.replacement in step.over


def _applied(step: _Step, over: Sequence[str]) -> AppliedPatch:
    patch = step.patch
    return AppliedPatch(name=patch.name, target=patch.target, kind=patch.kind, replacement=patch.replacement, over=tuple(over))


def _rewrite(patch: Patch) -> str:
    return f"install {patch.upstream} {' or '.join(patch.versions)}, or write {patch.replacement} and its ledger entry anew"
