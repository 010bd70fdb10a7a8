"""Executes steps on one rank: prefill chunks in one forward pass, decode rows in another, then one head for all rows that need logits.

It keeps the prompts of running sequences and the cache's tensors. It decides nothing: every rank gets the same steps.
Shapes: T tokens of this rank, R rows with logits, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from mindspeed_vita.config import LanguageConfig
from mindspeed_vita.data.assemble import EncodedSample
from mindspeed_vita.data.batch import MediaFailure
from mindspeed_vita.inference.cached_attention import CachedAttention
from mindspeed_vita.inference.decoder import Decoder
from mindspeed_vita.inference.plans import PrefillPlan, plan_decode, plan_prefill
from mindspeed_vita.inference.steps import DecodeRow, PrefillChunk, Step
from mindspeed_vita.inference.tile_feed import Seen, TileFeed, tiles_of, without_labels
from mindspeed_vita.parallel.layout import ParallelLayout

if TYPE_CHECKING:
    from mindspeed_vita.models.vita import VitaModel


@dataclass(frozen=True)
class StepResult:
    """What a step gave; the same on every rank."""

    logits: torch.Tensor
    """fp32 [R, vocabulary], one row for each of step.sampled."""
    failures: dict[int, MediaFailure]
    """Sequences of which a picture or video could not be decoded; what the model says of them means nothing."""
    digests: dict[int, dict[int, bytes]] = field(default_factory=dict)
    """tile_digest of the tiles that were decoded, by sequence and by the tile's number in the prompt."""


class ModelRunner:
    """One rank's model with its cache.

    Args:
        model: this rank's part, built without sequence parallelism; one pipeline stage.
        config: the language model's sizes.
        layout: this rank's place.
        attention: of all layers, over the cache.
        feed: encodes tiles.
        device: where the model is.
    """

    def __init__(
        self,
        model: VitaModel,
        config: LanguageConfig,
        layout: ParallelLayout,
        attention: CachedAttention,
        feed: TileFeed,
        device: torch.device,
    ) -> None:
        self.model, self.layout, self.attention, self.feed, self.device = model.eval(), layout, attention, feed, device
        self.decoder = Decoder(model.language, config, layout, attention)
        self._no_rows = torch.zeros(0, device=device), torch.zeros(0, dtype=torch.int64, device=device)
        self.block_size = attention.cache.block_size
        self.vocab_size = model.language.vocab_size
        self.prompts: dict[int, EncodedSample] = {}
        self._longest: dict[int, int] = {}

    def add(self, sequence: int, prompt: EncodedSample, *, longest: int) -> None:
        """Makes a sequence known, before its first chunk. On every rank.

        Args:
            sequence: its number.
            prompt: its tokens and media.
            longest: tokens that it may grow to; LongRoPE chooses its frequencies by it.
        """
        self.prompts[sequence] = without_labels(prompt)
        self._longest[sequence] = longest

    def forget(self, sequence: int) -> None:
        """Drops what is kept for a sequence."""
        self.prompts.pop(sequence, None)
        self._longest.pop(sequence, None)

    @torch.no_grad()
    def run(self, step: Step) -> StepResult:
        """Executes one step. Collective over tp and cp."""
        for sequence in step.ended:
            self.forget(sequence)
        if step.empty:
            return StepResult(torch.zeros(0, self.vocab_size, device=self.device), {})
        hidden: list[torch.Tensor] = []
        seen = Seen()
        if step.prefill:
            rows_RH, seen = self._prefill(step.prefill)
            hidden.append(rows_RH)
        if step.decode:
            hidden.append(self._decode(step.decode))
        hidden_RH = torch.cat(hidden)
        logits = self.model.head_logits(hidden_RH.unsqueeze(1), torch.arange(len(hidden_RH), device=self.device))
        return StepResult(logits, _first_failures(seen), seen.digests)

    def _prefill(self, chunks: Sequence[PrefillChunk]) -> tuple[torch.Tensor, Seen]:
        """Final hidden states of the last tokens of the chunks that end their sequence's prefill, and what was seen of their media."""
        layout = self.layout
        plan = plan_prefill(chunks, rank=layout.cp_rank, size=layout.cp_size, block_size=self.block_size, device=self.device)
        prompts = [self.prompts[chunk.sequence] for chunk in plan.chunks]
        tokens = np.concatenate([_tokens(prompt, chunk) for prompt, chunk in zip(prompts, plan.chunks)])
        own = torch.from_numpy(np.append(tokens[plan.places[: plan.num_real]], 0))
        vision, seen = self._no_rows, Seen()
        needed = tiles_of(plan, prompts, self.feed.tokens_per_tile)
        if needed:
            rows_RH, route, own_part = self.feed.rows(plan, needed, self.device)
            vision, seen = (rows_RH, route.targets), self._known_to_all(own_part)
        longest = np.repeat([self._longest[chunk.sequence] for chunk in plan.chunks], [chunk.stop - chunk.start for chunk in plan.chunks])
        longest_T = np.append(longest[plan.places[: plan.num_real]], 0)
        embeddings_TH = self.model.embed(own.to(self.device), *vision).squeeze(1)
        hidden_TH = self.decoder(embeddings_TH, plan, *self._rotary(plan.positions, longest_T))
        return self._last_rows(hidden_TH, plan, chunks), seen

    def _last_rows(self, hidden_TH: torch.Tensor, plan: PrefillPlan, chunks: Sequence[PrefillChunk]) -> torch.Tensor:
        """Rows of the chunks that need logits, in the order of the step. Each has one owner among the context-parallel ranks."""
        places = {chunk.sequence: place for chunk, place in zip(plan.chunks, plan.last)}
        wanted = [places[chunk.sequence] for chunk in chunks if chunk.last]
        rows_RH = hidden_TH.new_zeros(len(wanted), hidden_TH.shape[-1])
        for number, (rank, place) in enumerate(wanted):
            if rank == self.layout.cp_rank:
                rows_RH[number] = hidden_TH[place]
        if self.layout.cp_size > 1 and wanted:
            dist.all_reduce(rows_RH, group=self.layout.cp_group)
        return rows_RH

    def _decode(self, rows: Sequence[DecodeRow]) -> torch.Tensor:
        """Final hidden states of all rows, on every rank."""
        plan = plan_decode(rows, rank=self.layout.cp_rank, block_size=self.block_size, device=self.device)
        embeddings_TH = self.model.embed(torch.tensor([row.token for row in rows], device=self.device), *self._no_rows).squeeze(1)
        tables = self._rotary(np.array([row.position for row in rows]), np.array([self._longest[row.sequence] for row in rows]))
        return self.decoder(embeddings_TH, plan, *tables)

    def _rotary(self, positions_T: np.ndarray, longest_T: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        positions, longest = (torch.from_numpy(values).to(self.device) for values in (positions_T, longest_T))
        return self.model.rotary(positions, longest=longest)

    def _known_to_all(self, seen: Seen) -> Seen:
        """What any rank saw that shares the tiles."""
        if self.layout.tile_group_size == 1:
            return seen
        parts: list[Any] = [None] * self.layout.tile_group_size
        dist.all_gather_object(parts, seen, group=self.layout.tp_cp_group)
        together = Seen()
        for part in parts:
            together.failures += part.failures
            for sequence, digests in part.digests.items():
                together.digests.setdefault(sequence, {}).update(digests)
        return together


def _first_failures(seen: Seen) -> dict[int, MediaFailure]:
    """The first failure of each sequence."""
    first: dict[int, MediaFailure] = {}
    for sequence, failure in seen.failures:
        first.setdefault(sequence, failure)
    return first


def _tokens(prompt: EncodedSample, chunk: PrefillChunk) -> np.ndarray:
    """The chunk's token ids: the prompt's, then those of the answer that is computed again."""
    stop = chunk.stop - len(chunk.answer)
    return np.concatenate([prompt.tokens_T[chunk.start : stop], np.array(chunk.answer, dtype=np.int64)])
