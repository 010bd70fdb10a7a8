"""What a stage takes over from the one that it starts from, and what changes on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from mindspeed_vita.checkpoint.native.step_folder import POSITIONS, differing_keys
from mindspeed_vita.choices import ENGINES, Engine
from mindspeed_vita.config import Recipe
from mindspeed_vita.engine.adapter_base import differing_adapters

_STARTS: dict[Engine, tuple[Engine, ...]] = {
    "builtin": ("builtin",),
    "mindspeed-llm": ("builtin", "mindspeed-llm"),
    "hf": ENGINES,
}
"""Engine -> whose weights it starts from as they are."""


@dataclass(frozen=True, kw_only=True)
class Handoff:
    """Both sides of each thing that a later stage may change. The first is None for weights from elsewhere."""

    weights: tuple[str, ...]
    """Keys of the architecture that differ, with both values. Weights cannot be taken over then."""
    context: tuple[Optional[int], int]
    """Tokens of a pack."""
    trained: tuple[Optional[tuple[str, ...]], tuple[str, ...]]
    """Modules that learn. The others are frozen."""
    rope: tuple[str, ...]
    """Keys of the rotary positions that differ, with both values."""
    data: tuple[str, ...]
    """What differs of the mixture, tokenizer, template and isolation of samples, with both values."""
    stages: tuple[Optional[int], Optional[int]]
    """Their stages of the paper; None where the recipe names none."""
    problems: tuple[str, ...]
    """Why the stage cannot take over."""

    def lines(self) -> list[str]:
        """For people."""
        before, after = self.context
        grown = f"{before:,} -> {after:,}" if before not in (None, after) else f"{after:,}"
        was, now = self.trained
        learns = ", ".join(now) if was in (None, now) else f"{', '.join(was or ())} -> {', '.join(now)}"
        shorter = ", shorter than before" if before is not None and after < before else ""
        own = [f"context  {grown} tokens{shorter}", f"trained  {learns}"]
        if before is None:
            return own
        return [
            f"weights  {'; '.join(self.weights) or 'the same architecture'}",
            *own,
            f"rope     {'; '.join(self.rope) or 'unchanged'}",
            f"data     {'; '.join(self.data) or 'unchanged'}",
            *([f"order    NOTE: {self.order_note}"] if self.order_note else []),
        ]

    @property
    def order_note(self) -> str:
        """A sentence where an earlier stage of the paper starts from a later one; else empty."""
        before, after = self.stages
        if before is None or after is None or after >= before:
            return ""
        return f"a recipe of stage {after} starts from one of stage {before}; the paper trains 1, 2, 3, 4. Is the order right?"


def handoff(before: Optional[Recipe], after: Recipe, *, engines: tuple[Optional[Engine], Optional[Engine]] = (None, None)) -> Handoff:
    """What changes from a stage to the next.

    Args:
        before: recipe of the stage that gives the weights; None: they come from elsewhere.
        after: recipe of the stage that takes them.
        engines: of both, as far as they are known: a script may choose its own.
    """
    context, trained = after.data.seq_length, tuple(after.train.modules)
    if before is None:
        nothing: dict[str, tuple[str, ...]] = {"weights": (), "rope": (), "data": (), "problems": ()}
        return Handoff(context=(None, context), trained=(None, trained), stages=(None, after.stage), **nothing)
    differ = {key: f"model.{key}: {was} -> {now}" for key, (was, now) in differing_keys(before.model, after.model).items()}
    weights = tuple(text for key, text in differ.items() if not key.startswith(POSITIONS))
    names = ("mixture", "tokenizer", "template", "resets", "packing")
    data = {name: (getattr(before.data, name), getattr(after.data, name)) for name in names}
    changed = {name: f"{name}: {was} -> {now}" for name, (was, now) in data.items() if was != now}
    problems = [f"the architecture changes ({'; '.join(weights)}); a stage starts from weights of its own architecture"] if weights else []
    problems += [f"{changed[name]}: the token ids of the weights would mean something else" for name in ("template",) if name in changed]
    problems += _of_adapters(before, after)
    written, read = engines
    if written and read and not after.lora.rank and written not in _STARTS[read]:  # adapters take a base of any format
        problems.append(
            f"a run of engine {read} does not start from weights of engine {written}; convert them in `after` (convert --from ... --to "
            "native --output DIR), and start the stage from DIR (start: recipe)"
        )
    return Handoff(
        weights=weights,
        context=(before.data.seq_length, context),
        trained=(tuple(before.train.modules), trained),
        rope=tuple(text for key, text in differ.items() if key.startswith(POSITIONS)),
        data=tuple(changed.values()),
        stages=(before.stage, after.stage),
        problems=tuple(problems),
    )


def _of_adapters(before: Recipe, after: Recipe) -> list[str]:
    """Why a stage cannot take over from one that trains adapters."""
    if not before.lora.rank:
        return []
    if not after.lora.rank:
        return [
            "whole modules are to train, and the weights are adapters (lora.rank); merge them in `after` (convert --from {run} --merge "
            "--to native --output DIR), and start the stage from DIR (start: recipe)"
        ]
    differing = differing_adapters(before.lora, after.lora)
    return [f"the adapters differ ({'; '.join(differing)}); use the same settings, or merge them before"] if differing else []
