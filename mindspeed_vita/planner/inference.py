"""Inference of a recipe's model on a number of devices: memory of each cut into tp and cp, and the longest prompt that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Optional

from mindspeed_vita.config import Recipe
from mindspeed_vita.inference.loading import inference_recipe
from mindspeed_vita.planner.children import each_in_a_child, quiet
from mindspeed_vita.planner.device_memory import extras
from mindspeed_vita.planner.layouts import divisors, refusal
from mindspeed_vita.planner.search import Longest, largest_that_fits
from mindspeed_vita.planner.trace.answering import ANSWER, InferenceTrace, Prompt, trace_inference

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Question:
    """One cut of the devices."""

    recipe: Recipe
    tp: int
    cp: int
    prompt: Prompt
    device: str
    """npu or cuda; see device_memory.extras."""
    memory: Optional[int]
    """Bytes of a device; None looks for no longest prompt."""


@dataclass(frozen=True, kw_only=True)
class InferencePlan:
    """What one cut needs on its first rank."""

    tp: int
    cp: int
    traced: InferenceTrace
    """With the prompt that was asked for."""
    added: int
    """Bytes that the device adds."""
    longest: Optional[Longest]
    """Longest prompt that fits."""

    @property
    def memory(self) -> int:
        """Bytes with what the device adds."""
        return self.traced.peak + self.added


def plan_inference(
    recipe: Recipe,
    world: int,
    prompt: Prompt,
    *,
    device: str,
    memory: Optional[int],
    processes: int,
    say: Callable[[str], None],
) -> tuple[list[InferencePlan], list[str]]:
    """Each cut of the world into tp and cp that serves the model, and why the others do not.

    Args:
        recipe: architecture and precision.
        world: number of devices.
        prompt: what is asked.
        device, memory: as in Question.
        processes: cuts that are traced at a time.
        say: told of progress.

    Raises:
        ValueError: no cut serves the model, or the prompt is longer than its positions.
    """
    questions, reasons = [], []
    for tp in divisors(world):
        cp = world // tp
        reason = refusal(inference_recipe(recipe, tp, cp), world)
        if reason is None:
            questions.append(Question(recipe=recipe, tp=tp, cp=cp, prompt=prompt, device=device, memory=memory))
        else:
            reasons.append(f"tp {tp} cp {cp}: {reason}")
    if not questions:
        raise ValueError(f"no cut of {world} devices into tp and cp serves {recipe.name}: {reasons[0]}")
    plans = each_in_a_child(
        _answer, questions, processes, lambda number: say(f"traced tp {questions[number].tp} cp {questions[number].cp}")
    )
    return plans, reasons


def _answer(question: Question) -> InferencePlan:
    def traced(tokens: int) -> InferenceTrace:
        return trace_inference(question.recipe, question.tp, question.cp, replace(question.prompt, tokens=tokens))

    def memory_of(tokens: int) -> int:
        found = traced(tokens)
        return found.peak + _added(question, found)

    with quiet(question.recipe):
        asked, longest = traced(question.prompt.tokens), None
        if question.memory is not None:
            positions = question.recipe.model.language.max_positions - ANSWER
            step = min(question.prompt.block_size, positions)  # a small model may have fewer positions than a block
            longest = largest_that_fits(memory_of, start=question.prompt.tokens, step=step, limit=positions, memory=question.memory)
    return InferencePlan(tp=question.tp, cp=question.cp, traced=asked, added=_added(question, asked), longest=longest)


def _added(question: Question, traced: InferenceTrace) -> int:
    """The extras are those of a trace, whose peak has a step's cache and activations as well."""
    return sum(extra.bytes for extra in extras(question.device, traced.trace))


def table(plans: Sequence[InferencePlan], reasons: Sequence[str], prompt: Prompt, memory: Optional[int]) -> str:
    """The plans as text."""
    return "\n".join(_lines(plans, reasons, prompt, memory))


def _lines(plans: Sequence[InferencePlan], reasons: Sequence[str], prompt: Prompt, memory: Optional[int]) -> Iterator[str]:
    yield f"{'GiB per device':<16}{'weights':>9}{'cache':>9}{'prefill':>9}{'decode':>9}{'added':>9}{'together':>10}{'KiB/token':>11}" + (
        "" if memory is None else f"  fits {memory / _GIB:.2f}  longest prompt that fits"
    )
    for plan in plans:
        one = plan.traced
        sizes = "".join(f"{size / _GIB:>9,.2f}" for size in (one.weights, one.cache, one.prefill, one.decode, plan.added))
        line = f"tp {plan.tp:<4} cp {plan.cp:<5}{sizes}{plan.memory / _GIB:>10,.2f}{one.per_token / 2**10:>11,.2f}"
        if memory is not None and plan.longest is not None:
            fits = "yes" if plan.memory <= memory else "NO"
            line += f"  {fits:<{len(f'fits {memory / _GIB:.2f}')}}  {longest_in_words(plan.longest)}"
        yield line
    yield f"  cache: of one sequence, the prompt's {prompt.tokens:,} tokens and its answer's first; KiB/token: of a token, on each device"
    yield f"  a chunk of the prompt has up to {prompt.chunk:,} tokens"
    yield "  prefill: what the last full chunk adds to weights and cache; decode: what the step after it adds. The larger one counts"
    for reason in reasons:
        yield f"out: {reason}"


def longest_in_words(longest: Longest) -> str:
    """Length and why it is not longer."""
    if not longest.length:
        return "none"
    limit = "; the model has no more positions" if longest.limited else ""
    return f"{longest.length:,} tokens ({longest.memory / _GIB:.2f} GiB{limit})"
