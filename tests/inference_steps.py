"""Steps without a scheduler, for tests of the runner: blocks are dealt as the scheduler deals them, and none is ever given back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from mindspeed_vita.inference.session import InferenceSession
from mindspeed_vita.inference.steps import BlockRef, DecodeRow, PrefillChunk, Step
from mindspeed_vita.sharding import deal_blocks


@dataclass
class Drive:
    """Feeds sequences to a session by hand."""

    session: InferenceSession
    tables: dict[int, list[BlockRef]] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    used: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cp, self.size = self.session.loaded.layout.cp_size, self.session.settings.block_size
        self.used = [0] * self.cp

    def _grow(self, sequence: int, stop: int) -> tuple[BlockRef, ...]:
        table = self.tables.setdefault(sequence, [])
        for rank in deal_blocks(len(table), -(-stop // self.size) - len(table), self.cp).tolist():
            table.append(BlockRef(rank, self.used[rank]))
            self.used[rank] += 1
        return tuple(table)

    def prefill(self, sequences: Sequence[int], *, chunk: int = 1 << 20) -> torch.Tensor:
        """Logits [sequences, vocabulary] after the prompts of sequences that the runner knows, in chunks of so many tokens."""
        lengths = {sequence: len(self.session.runner.prompts[sequence].tokens_T) for sequence in sequences}
        done = {sequence: self.lengths.get(sequence, 0) for sequence in sequences}
        rows: dict[int, torch.Tensor] = {}
        while any(done[sequence] < lengths[sequence] for sequence in sequences):
            chunks = []
            for sequence in sequences:
                start, stop = done[sequence], min(done[sequence] + chunk, lengths[sequence])
                if start < stop:
                    table = self._grow(sequence, stop)
                    chunks.append(PrefillChunk(sequence, start, stop, table, (), stop == lengths[sequence]))
                    done[sequence] = stop
            step = Step(tuple(chunks))
            result = self.session.run(step)
            assert not result.failures
            rows.update(zip(step.sampled, result.logits))
        self.lengths.update(lengths)
        return torch.stack([rows[sequence] for sequence in sequences])

    def decode(self, tokens: dict[int, int]) -> torch.Tensor:
        """Logits after one more token of each sequence."""
        rows = []
        for sequence, token in tokens.items():
            position = self.lengths[sequence]
            self.lengths[sequence] = position + 1
            rows.append(DecodeRow(sequence, position, token, self._grow(sequence, position + 1)))
        return self.session.run(Step((), tuple(rows))).logits

    def greedy(self, sequences: Sequence[int], count: int, *, chunk: int = 1 << 20) -> tuple[dict[int, list[int]], torch.Tensor]:
        """Answers of so many tokens, without regard to stop tokens, and all logits [count, sequences, vocabulary]."""
        placeholders = list(self.session.prompts.ids.placeholders)
        answers: dict[int, list[int]] = {sequence: [] for sequence in sequences}
        seen = []
        logits = self.prefill(sequences, chunk=chunk)
        for number in range(count):
            seen.append(logits.clone())
            logits[:, placeholders] = float("-inf")
            for sequence, token in zip(sequences, logits.argmax(-1).tolist()):
                answers[sequence].append(token)
            if number + 1 < count:
                logits = self.decode({sequence: answers[sequence][-1] for sequence in sequences})
        return answers, torch.stack(seen)
