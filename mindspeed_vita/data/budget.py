"""How many samples of each source may fail to decode before the run stops, and what it then says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

FREE_FAILURES = 10
"""Samples of a source that may fail whatever the budget says: one file is no reason to stop a small run."""


@dataclass(frozen=True)
class FailureBudget:
    """A share of each source's samples."""

    share: float
    """data.failure_budget."""
    sources: Sequence[str]
    source_ids: np.ndarray
    """int[n], source of each sample id; a sample that is drawn again within an epoch has one id."""

    @cached_property
    def samples(self) -> list[int]:
        """Distinct samples of each source."""
        return np.bincount(self.source_ids, minlength=len(self.sources)).tolist()

    def check(self, failed: Iterable[int], reasons: Mapping[int, str]) -> None:
        """Compares all samples that failed so far with what is allowed.

        Args:
            failed: sample ids, the same on every rank.
            reasons: why, as far as it is known: those of earlier runs are in the quarantine file only.

        Raises:
            ValueError: a source is over its budget; lists the commonest reasons.
        """
        ids = np.fromiter(failed, dtype=np.int64)
        counts = np.bincount(self.source_ids[ids], minlength=len(self.sources))
        for source_id, count in enumerate(counts.tolist()):
            if count > max(FREE_FAILURES, self.share * self.samples[source_id]):
                own = [reasons[number] for number in ids.tolist() if number in reasons and self.source_ids[number] == source_id]
                worst = "; ".join(f"{times} x {kind}" for kind, times in Counter(map(kind_of, own)).most_common(5))
                raise ValueError(
                    f"source {self.sources[source_id]!r}: {count:,} of {self.samples[source_id]:,} samples failed to decode, "
                    f"data.failure_budget={self.share:g} allows {int(self.share * self.samples[source_id]):,}: {worst}; "
                    "the quarantine file names each; repair them or raise the budget, and start again"
                )


def kind_of(reason: str) -> str:
    """A reason without the numbers and paths that tell one case from the next."""
    return "".join("#" if char.isdigit() else char for char in _innermost(reason))


def _innermost(reason: str) -> str:
    """What stands behind the last colon. A bracket that closes there and opened before goes too: "cannot be read (OSError: cut short)"."""
    last = reason.rpartition(": ")[2]
    return last[:-1] if last.endswith(")") and last.count(")") > last.count("(") else last
