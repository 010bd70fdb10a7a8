"""A loaded model with its cache: executes steps, on this rank's device and together with the other ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import torch
import torch.distributed as dist

from mindspeed_vita.config import Recipe
from mindspeed_vita.data.assemble import EncodedSample
from mindspeed_vita.data.prepare import decode_settings
from mindspeed_vita.inference.block_names import settings_text
from mindspeed_vita.inference.cached_attention import CachedAttention
from mindspeed_vita.inference.kv_cache import KVCache, blocks_in, bytes_per_block
from mindspeed_vita.inference.loading import LoadedModel, load_model
from mindspeed_vita.inference.prompt import PromptEncoder
from mindspeed_vita.inference.ranks import TIMEOUT, Ranks
from mindspeed_vita.inference.runner import ModelRunner, StepResult
from mindspeed_vita.inference.steps import BLOCK_SIZE, Step, decode_step, encode_step
from mindspeed_vita.inference.tile_feed import TileFeed
from mindspeed_vita.parallel.layout import ParallelLayout

if TYPE_CHECKING:
    from mindspeed_vita.models.vita import VitaModel


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """Sizes of a session; the same on every rank."""

    cache_memory: Optional[int] = None
    """Bytes of the cache on each rank; None takes a share of what is free (see free_share)."""
    block_size: int = BLOCK_SIZE
    """Tokens of a block."""
    tiles_in_flight: int = 64
    """Most tiles that a rank holds as pixels at a time."""
    travels: str = "auto"
    """What moves between context-parallel ranks for cached tokens before a chunk: auto | queries | keys."""
    rank_timeout: float = TIMEOUT
    """Seconds that a rank waits for another one before all end."""


@dataclass
class Outcome:
    """What the first rank hands to the others at the end of `InferenceSession.leading`."""

    result: Any = None
    """What `serve` returns there."""


class InferenceSession:
    """One rank's part of a session.

    Args:
        loaded: model, layout, recipe and tokenizer.
        settings: sizes.

    Raises:
        ValueError: the memory holds no block, or a setting is out of range.
    """

    def __init__(self, loaded: LoadedModel, settings: SessionSettings = SessionSettings()) -> None:
        if settings.block_size < 1:
            raise ValueError(f"block_size is {settings.block_size}; expected at least 1")
        self.loaded, self.settings = loaded, settings
        groups = loaded.layout.tp_cp_group, loaded.layout.tp_group, loaded.layout.cp_group
        self.ranks = Ranks(groups, loaded.layout.tile_group_size, loaded.layout.tile_rank, settings.rank_timeout)
        self.prompts = PromptEncoder(loaded.recipe, loaded.tokenizer, loaded.frame_pooling)
        budget = free_share(loaded.device) if settings.cache_memory is None else settings.cache_memory
        per_block = bytes_per_block(**cache_sizes(loaded.recipe, loaded.layout, settings.block_size))
        num_blocks = _least(blocks_in(budget, per_block), loaded.layout.tp_cp_group, loaded.layout.tile_group_size)
        self.runner = build_runner(loaded.model, loaded.layout, loaded.recipe, loaded.device, settings=settings, num_blocks=num_blocks)
        self.cache = self.runner.attention.cache

    def run(self, step: Step) -> StepResult:
        """Executes one step on this rank. Collective over tp and cp: every rank is given the same step."""
        with self.ranks.together(f"computing {step.described}"):
            return self.runner.run(step)

    # What the first rank has all ranks do

    def add(self, number: int, prompt: EncodedSample, *, longest: int) -> None:
        """ModelRunner.add on every rank. First rank only."""
        self.ranks.tell(("add", number, prompt, longest))
        self.runner.add(number, prompt, longest=longest)

    def execute(self, step: Step) -> StepResult:
        """ModelRunner.run on every rank. First rank only."""
        self.ranks.tell(("step", encode_step(step)), f"handing out {step.described}")
        return self.run(step)

    def beat(self) -> None:
        """Nothing, on every rank: it fails where another rank is gone, while no request makes the ranks meet. First rank only."""
        self.ranks.beat()

    @contextmanager
    def leading(self) -> Iterator[Outcome]:
        """Around all that needs the model. First rank only; the other ranks call `serve`, which returns at the end of the block.

        Inside the block the others are told every few seconds that this rank is alive. A ValueError or OSError of the block passes
        through, and `serve` raises it on the other ranks. A ConnectionError passes through too, but nobody is told: another rank is gone.
        So does every other error, because the others may be in the middle of a step.

        Yields:
            What `serve` returns on the other ranks; the block may set it.
        """
        outcome = Outcome()
        self.ranks.lead()
        try:
            yield outcome
        except ConnectionError:
            raise
        except (ValueError, OSError) as error:
            self._dismiss(problem=str(error) or type(error).__name__)
            raise
        else:
            self._dismiss(outcome.result)
        finally:
            self.ranks.rest()

    def _dismiss(self, result: Any = None, problem: str = "") -> None:
        self.ranks.rest()  # first: after the message nobody hears a beat
        self.ranks.tell(("end", result, problem))

    def serve(self) -> Any:
        """Does what the first rank says, until its `leading` ends; returns its result. Not on the first rank.

        Raises:
            ValueError: the first rank ended with an error, which is given again.
        """
        while True:
            kind, *arguments = self.ranks.hear()
            if kind == "step":
                self.run(decode_step(arguments[0]))
            elif kind == "add":
                number, prompt, longest = arguments
                self.runner.add(number, prompt, longest=longest)
            else:
                assert kind == "end", kind
                result, problem = arguments
                if problem:
                    raise ValueError(problem)
                return result


def cache_sizes(recipe: Recipe, layout: ParallelLayout, block_size: int) -> dict[str, Any]:
    """What bytes_per_block and KVCache take for one rank of a model."""
    # Not at the top: init_distributed prepares megatron.core for this device before it is imported.
    from mindspeed_vita.parallel.build import DTYPES

    language = recipe.model.language
    return {
        "num_layers": language.num_layers,
        "block_size": block_size,
        "kv_heads": language.num_kv_heads // layout.tp_size,
        "head_dim": language.head_dim,
        "dtype": DTYPES[recipe.train.precision],
    }


def build_runner(
    model: VitaModel,
    layout: ParallelLayout,
    recipe: Recipe,
    device: torch.device,
    *,
    settings: SessionSettings,
    num_blocks: int,
    feed: type[TileFeed] = TileFeed,
) -> ModelRunner:
    """One rank's model with its cache and what encodes its tiles.

    Args:
        model, layout, recipe, device: as in LoadedModel.
        settings: sizes.
        num_blocks: blocks of the cache on this rank.
        feed: where tiles come from.
    """
    from mindspeed_vita.parallel.build import language_backend

    attention = CachedAttention(
        KVCache(num_blocks=num_blocks, device=device, **cache_sizes(recipe, layout, settings.block_size)),
        language_backend(recipe, layout, device),
        group=layout.cp_group if layout.cp_size > 1 else None,
        rank=layout.cp_rank,
        size=layout.cp_size,
        travels=settings.travels,
    )
    tiles = feed(
        model,
        layout,
        tile_size=recipe.model.vision.tile_size,
        tokens_per_tile=recipe.model.tokens_per_tile,
        decoding=decode_settings(recipe.data, recipe.model.vision.normalization),
        tiles_in_flight=settings.tiles_in_flight,
        pixels=settings_text({"normalization": recipe.model.vision.normalization}),
    )
    return ModelRunner(model, recipe.model.language, layout, attention, tiles, device)


def load_session(path: str | Path, *, settings: SessionSettings = SessionSettings(), **options: Any) -> InferenceSession:
    """Loads a checkpoint and makes its cache. Collective.

    Args:
        path: see loading.load_model.
        settings: sizes.
        options: of loading.load_model.

    Raises:
        ValueError: as load_model and InferenceSession.
    """
    return InferenceSession(load_model(path, **options), settings)


def free_share(device: torch.device) -> int:
    """Bytes for the cache where none are asked for: 80% of what an accelerator has free, a quarter of what a host has free."""
    if device.type != "cpu":
        free, _ = torch.get_device_module(device).mem_get_info(device)
        return int(free * 0.8)
    with open("/proc/meminfo", encoding="ascii") as file:
        kib = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    return kib * 1024 // 4


def _least(value: int, group: Any, size: int) -> int:
    """The smallest of all ranks' values: ranks may find different amounts of memory free."""
    if size == 1:
        return value
    least = torch.tensor([value])
    dist.all_reduce(least, op=dist.ReduceOp.MIN, group=group)
    return int(least)
