"""The blocks of the key-value cache, counted: who uses which, which content stays findable under a name, and which goes first.

Numbers only, on rank 0. The tensors behind the blocks are the runner's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from mindspeed_vita.inference.steps import BlockRef


@dataclass(frozen=True)
class BlockCounts:
    """The state of one rank's blocks. Every block is in exactly one of the three."""

    used: int
    """Blocks of sequences that run."""
    cached: int
    """Blocks that no sequence uses, with content that a later one may find by name."""
    free: int
    """Blocks without content."""


class BlockPool:
    """Blocks over context-parallel ranks, with reference counts and names.

    A block with a name is full and its content never changes: several sequences may use it. A block without a name has one user, who
    writes to it. When nobody uses a block any more, it becomes free, or, if it has a name, stays cached until its room is needed. Then
    the one that was released first goes first.

    Args:
        blocks_per_rank: blocks that every rank has memory for.
        cp: number of context-parallel ranks.

    Raises:
        ValueError: no block or no rank.
    """

    def __init__(self, blocks_per_rank: int, cp: int = 1) -> None:
        if blocks_per_rank < 1 or cp < 1:
            raise ValueError(f"a cache of {blocks_per_rank} blocks on each of {cp} ranks holds nothing; give it more memory")
        self.blocks_per_rank, self.cp = blocks_per_rank, cp
        self._free = [list(range(blocks_per_rank))[::-1] for _ in range(cp)]
        self._cached: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(cp)]
        self._users: dict[BlockRef, int] = {}
        self._named: dict[bytes, BlockRef] = {}
        self._names: dict[BlockRef, bytes] = {}

    @property
    def num_blocks(self) -> int:
        """Blocks on all ranks together."""
        return self.blocks_per_rank * self.cp

    def available(self, rank: int) -> int:
        """Blocks that can be allocated on a rank: the free ones and the cached ones."""
        return len(self._free[rank]) + len(self._cached[rank])

    def users(self, ref: BlockRef) -> int:
        """Sequences that use a block."""
        return self._users.get(ref, 0)

    def allocate(self, rank: int) -> BlockRef:
        """A block for one user to write to. It takes a free one, else the cached one that was released first; that one's name is forgotten.

        The caller has asked `available` before.
        """
        if self._free[rank]:
            ref = BlockRef(rank, self._free[rank].pop())
        else:
            assert self._cached[rank], f"rank {rank} has no block left"
            ref = BlockRef(rank, self._cached[rank].popitem(last=False)[0])
            del self._named[self._names.pop(ref)]
        self._users[ref] = 1
        return ref

    def find(self, names: Iterable[bytes]) -> list[BlockRef]:
        """The blocks of the longest run of names, from the first on, that all have their content here. Changes nothing."""
        found = []
        for name in names:
            if name not in self._named:
                break
            found.append(self._named[name])
        return found

    def share(self, ref: BlockRef) -> None:
        """Adds a user to a block with a name."""
        assert ref in self._names, f"{ref} has no name: its content may still change"
        self._cached[ref.rank].pop(ref.block, None)
        self._users[ref] = self._users.get(ref, 0) + 1

    def give_name(self, ref: BlockRef, name: bytes) -> None:
        """Makes a full block findable. If another block has the name already, that one stays the one to find, and this one goes without."""
        assert ref in self._users and ref not in self._names, f"{ref} is not in use, or has a name"
        if name not in self._named:
            self._named[name], self._names[ref] = ref, name

    def release(self, refs: Iterable[BlockRef]) -> None:
        """Takes one user off each block of a sequence's table.

        The last block counts as released first: without the blocks before it nobody can use it, so it must not outlive them.
        """
        for ref in reversed(list(refs)):
            left = self._users[ref] - 1
            if left:
                self._users[ref] = left
                continue
            del self._users[ref]
            if ref in self._names:
                self._cached[ref.rank][ref.block] = None
            else:
                self._free[ref.rank].append(ref.block)

    @property
    def used_share(self) -> float:
        """Share of all blocks that sequences use. May be read from another thread."""
        return len(self._users) / self.num_blocks

    def counts(self) -> list[BlockCounts]:
        """The state of each rank's blocks."""
        used = [0] * self.cp
        for ref in self._users:
            used[ref.rank] += 1
        return [BlockCounts(used[rank], len(self._cached[rank]), len(self._free[rank])) for rank in range(self.cp)]
