"""Inference of one rank on tensors without memory: the last full chunk of a long prompt and the step that decodes behind it.

The scheduler decides the steps, and the runner of the inference session executes them over its own cache. What a trace leaves in this
process holds tensors without memory; see step.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from mindspeed_vita.config import Recipe, validate
from mindspeed_vita.data.assemble import EncodedSample, Medium
from mindspeed_vita.inference.block_pool import BlockPool
from mindspeed_vita.inference.kv_cache import bytes_per_block
from mindspeed_vita.inference.loading import inference_recipe
from mindspeed_vita.inference.runner import ModelRunner
from mindspeed_vita.inference.scheduler import Budgets, Scheduler
from mindspeed_vita.inference.sequence import NewSequence
from mindspeed_vita.inference.session import SessionSettings, build_runner, cache_sizes
from mindspeed_vita.inference.steps import Step
from mindspeed_vita.inference.tile_feed import ChunkTiles, Seen, TileFeed
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.planner.trace.attributes import attributes_stay
from mindspeed_vita.planner.trace.packs import tile_places
from mindspeed_vita.planner.trace.places import Places
from mindspeed_vita.planner.trace.rank import OtherRanks, fake_rank
from mindspeed_vita.planner.trace.recorder import ListsOfNumbers, Recorder
from mindspeed_vita.planner.trace.result import Trace
from mindspeed_vita.planner.trace.step import fake_mode

ANSWER = 2
"""Tokens of the answer. The second one is decoded over the whole prompt."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is asked."""

    tokens: int
    """Length of the prompt."""
    chunk: int = 8192
    """Most tokens of a prefill chunk (Budgets.prefill_tokens)."""
    block_size: int = SessionSettings().block_size
    """Tokens of a block of the cache."""
    vision: float = 1.0
    """Share of its tokens that are tiles, with the two markers around each: a film fills the prompt."""


@dataclass(frozen=True, kw_only=True)
class InferenceTrace:
    """Memory of one rank, in bytes."""

    weights: int
    cache: int
    """Blocks for the prompt and its answer."""
    per_token: float
    """Of the cache, for each token of the whole sequence."""
    prefill: int
    """What the prompt's last full chunk adds at its peak."""
    decode: int
    """What decoding one token adds at its peak."""
    trace: Trace
    """Of both steps: work and collectives together."""

    @property
    def peak(self) -> int:
        """Weights, cache, and what the larger step adds."""
        return self.weights + self.cache + max(self.prefill, self.decode)


def trace_inference(recipe: Recipe, tp: int, cp: int, prompt: Prompt, *, rank: int = 0) -> InferenceTrace:
    """One rank of a session whose cache has room for one sequence and no more.

    Args:
        recipe: architecture and precision.
        tp, cp: layout; they make the world.
        prompt: what is asked.
        rank: which rank to be.

    Raises:
        ValueError: the layout does not fit the model, or the prompt is longer than the model's positions.
    """
    wanted = answering_recipe(recipe, tp, cp)
    recorder = Recorder(fake_mode(), Places())
    with fake_rank(wanted, tp * cp, rank) as layout:
        steps, blocks = long_prompt_steps(wanted, layout, prompt)
        sample = _sample(wanted, prompt)
        with fake_mode(), recorder, ListsOfNumbers(), OtherRanks().answering(), attributes_stay():
            runner = _build(wanted, layout, prompt, blocks=blocks, setup=recorder.name_setup, to_device=recorder.to_device)
            runner.add(0, sample, longest=prompt.tokens + ANSWER)
            recorder.start(runner.model)
            marks = []
            try:
                for step in steps:
                    runner.run(step)
                    marks.append(len(recorder.changes))
            finally:
                recorder.caller.stop()
        trace = Trace.of(recorder, layout=layout, micro_batches=1, packs=1)
    cache = blocks * _block(wanted, layout, prompt)
    live, middle = trace.live, marks[0] - recorder.started + 1
    return InferenceTrace(
        weights=trace.held - cache,
        cache=cache,
        per_token=_block(wanted, layout, prompt) / prompt.block_size / cp,
        prefill=int(live[:middle].max()) - trace.held,
        decode=int(live[middle:].max()) - trace.held,
        trace=trace,
    )


def measure_inference(recipe: Recipe, tp: int, cp: int, prompt: Prompt, around: Callable[[], AbstractContextManager[None]]) -> None:
    """The same on real tensors, as rank 0: what a trace is compared with. Collectives return at once.

    Args:
        recipe, tp, cp, prompt: as for `trace_inference`.
        around: entered for the prompt's last full chunk, and again for the step that decodes.
    """
    wanted = answering_recipe(recipe, tp, cp)
    # oneDNN's kernels for AMX, of some CPUs only, hold buffers of their own
    with fake_rank(wanted, tp * cp, 0) as layout, OtherRanks().answering(), torch.backends.mkldnn.flags(enabled=False):
        steps, blocks = long_prompt_steps(wanted, layout, prompt)
        runner = _build(wanted, layout, prompt, blocks=blocks)
        runner.add(0, _sample(wanted, prompt), longest=prompt.tokens + ANSWER)
        for step in steps:
            with around():
                runner.run(step)


def answering_recipe(recipe: Recipe, tp: int, cp: int) -> Recipe:
    """The recipe of a session with such a layout.

    Raises:
        ValueError: the layout does not fit the model.
    """
    wanted = inference_recipe(recipe, tp, cp)
    validate(wanted, tp * cp)
    return wanted


def long_prompt_steps(recipe: Recipe, layout: ParallelLayout, prompt: Prompt) -> tuple[tuple[Step, Step], int]:
    """The step of the prompt's last full chunk, the step that decodes the answer's second token, and the blocks that each rank needs.

    Raises:
        ValueError: the prompt is longer than the model's positions.
    """
    blocks = -(-(prompt.tokens + ANSWER) // prompt.block_size)
    per_rank = -(-blocks // layout.cp_size) + 1  # chunks may be dealt with one block more to a rank
    budgets = Budgets(prefill_tokens=prompt.chunk, max_length=recipe.model.language.max_positions)
    scheduler = Scheduler(BlockPool(per_rank, layout.cp_size), budgets, root=b"", block_size=prompt.block_size)
    number = scheduler.add(NewSequence(tokens=np.zeros(prompt.tokens, dtype=np.int64), max_tokens=ANSWER))
    step = widest = scheduler.schedule()
    while not step.sampled:
        scheduler.update(step, {})
        step = scheduler.schedule()
        widest = step if step.num_tokens >= widest.num_tokens else widest
    scheduler.update(step, {number: 1})
    return (widest, scheduler.schedule()), per_rank


def _build(
    recipe: Recipe,
    layout: ParallelLayout,
    prompt: Prompt,
    *,
    blocks: int,
    setup: Callable[[str], None] = lambda part: None,
    to_device: Callable[[torch.Tensor], torch.Tensor] = lambda tiles: tiles,
) -> ModelRunner:
    """The model with its cache, as an InferenceSession has it.

    Args:
        recipe: of `answering_recipe`.
        layout: the rank.
        prompt: what is asked.
        blocks: of the cache on this rank.
        setup: told what comes next: weights, cache.
        to_device: moves pixels.
    """
    from mindspeed_vita.parallel.build import build_model

    class BlankTiles(TileFeed):
        """Tiles without pixels."""

        def _decoded(self, chunks: Sequence[ChunkTiles], own: range, seen: Seen) -> Iterator[torch.Tensor]:
            for start in range(own.start, own.stop, self.at_once):
                number = min(self.at_once, own.stop - start)
                yield to_device(self._no_tiles().new_zeros(number, 3, self.tile_size, self.tile_size))

    device = torch.device("cpu")
    setup("weights")
    model = build_model(recipe, layout, device, sequence_parallel=False)
    model.requires_grad_(False)
    setup("cache")
    settings = SessionSettings(block_size=prompt.block_size)
    return build_runner(model, layout, recipe, device, settings=settings, num_blocks=blocks, feed=BlankTiles)


def _sample(recipe: Recipe, prompt: Prompt) -> EncodedSample:
    starts = tile_places(np.array([0, prompt.tokens]), recipe.model.tokens_per_tile, prompt.vision)
    film = Medium(path="", grid=None, header=None, numbers=tuple(range(len(starts))))
    tokens = np.zeros(prompt.tokens, dtype=np.int64)
    return EncodedSample(0, 0, "", "", tokens, tokens[:0], starts, (film,))


def _block(recipe: Recipe, layout: ParallelLayout, prompt: Prompt) -> int:
    return bytes_per_block(**cache_sizes(recipe, layout, prompt.block_size))
