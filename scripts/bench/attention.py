"""Ring attention on a CPU: time of two ranks against one process, and what a virtual ring computes and moves, counted, against its plan.

    OMP_NUM_THREADS=1 python scripts/bench/attention.py [--tokens 16384] [--counted-tokens 4096]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

with packages_needed():
    import numpy as np
    import torch
    import torch.distributed as dist
    import torch.multiprocessing as mp

    from mindspeed_vita.checks import virtual_ring
    from mindspeed_vita.ops.attention import Blocks, Heads, Upstream, torch_native
    from mindspeed_vita.parallel.ring import Transfer, ring_attention
    from mindspeed_vita.sharding import CPPlan, index, make_cp_plan
    from mindspeed_vita.sharding.cp_plan import rank_work

HEADS, KV_HEADS, WIDTH = 5, 1, 128
"""One tensor-parallel rank's share of the 14B model at tp 8."""


class Counting:
    """torch_native's block kernels that also count the query-key pairs they are given."""

    def __init__(self) -> None:
        self.forward_pairs = self.backward_pairs = 0

    def refuse(self, heads: Heads) -> None:
        """As torch_native."""

    tiles = staticmethod(torch_native.tiles)
    merge_ = staticmethod(torch_native.merge_)

    @staticmethod
    def _pairs(blocks: Blocks) -> int:
        segments = blocks.segments
        rows, keys = segments[:, 1] - segments[:, 0], segments[:, 3] - segments[:, 2]
        return int((rows * (rows + 1) // 2 if blocks.causal else rows * keys).sum())

    def blocks_forward(self, blocks: Blocks) -> tuple[torch.Tensor, torch.Tensor]:
        """As torch_native."""
        self.forward_pairs += self._pairs(blocks)
        return torch_native.blocks_forward(blocks)

    def blocks_backward(self, blocks: Blocks, upstream: Upstream, *, dq_TND: torch.Tensor, dkv_2SGD: torch.Tensor) -> None:
        """As torch_native."""
        self.backward_pairs += self._pairs(blocks)
        torch_native.blocks_backward(blocks, upstream, dq_TND=dq_TND, dkv_2SGD=dkv_2SGD)


def tensors(num_tokens: int) -> list[torch.Tensor]:
    """Query, key, value and upstream gradient of a pack."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(num_tokens, heads, WIDTH, generator=generator) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]


def rank_seconds(rank: int, world: int, num_tokens: int, store: str, results: Any) -> None:
    """CPU seconds of one rank for forward and backward over one document; the best of three."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, store=dist.FileStore(store, world))
    cp_plan = make_cp_plan(np.array([0, num_tokens]), world)
    rows = torch.from_numpy(index(cp_plan, rank))
    query, key, value, grad = (x[rows] for x in tensors(num_tokens))
    best = float("inf")
    for _ in range(3):
        leaves = [x.clone().requires_grad_() for x in (query, key, value)]
        dist.barrier()
        started = time.process_time()
        ring_attention(*leaves, cp_plan, scale=WIDTH**-0.5, group=dist.group.WORLD, rank=rank, backend=torch_native).backward(grad)
        best = min(best, time.process_time() - started)
    results[rank] = best
    dist.destroy_process_group()


def measured_ring(num_tokens: int) -> None:
    """CPU time of each of two ranks over that of one process."""
    seconds = {}
    for world in (1, 2):
        with TemporaryDirectory() as folder, mp.get_context("spawn").Manager() as manager:
            results = manager.dict()
            mp.spawn(rank_seconds, (world, num_tokens, str(Path(folder) / "store"), results), nprocs=world)
            seconds[world] = max(results.values())
    print(f"| one document of {num_tokens:,} | 2 processes | CPU time of the slower rank / one process | {seconds[2] / seconds[1]:.3f} |")


def counted(name: str, cp_plan: CPPlan) -> None:
    """Pairs computed and bytes moved by a virtual ring in bf16, against one device, a full ring and the plan."""
    kernels, moved = Counting(), Counter[str]()

    class Exchange(virtual_ring._SharedMemory):
        """Counts the bytes of what really changes hands."""

        def fetch(self, kv: torch.Tensor, steps: Any, distance: int) -> Transfer:
            transfer = super().fetch(kv, steps, distance)
            moved["keys"] += transfer.wait().nbytes
            return transfer

        def give_back(self, dkv: torch.Tensor, step: Any, distance: int) -> Transfer:
            moved[f"gradients, {dkv.dtype}"] += dkv.nbytes
            return super().give_back(dkv, step, distance)

    leaves = [x.bfloat16() for x in tensors(cp_plan.num_tokens)]
    with mock.patch.object(virtual_ring, "_SharedMemory", Exchange):
        virtual_ring.virtual_ring_attention(*leaves, cp_plan, scale=WIDTH**-0.5, backend=kernels)
    needed = int(rank_work(cp_plan).sum())
    row = 2 * KV_HEADS * WIDTH  # numbers in a key and its value; a key travels forward and once more backward, in bf16
    rows = sum(step.num_received for rank in range(cp_plan.ring_size) for step in cp_plan.steps(rank).ring[1:])
    ring = cp_plan.num_tokens * (cp_plan.ring_size - 1)
    for pass_, pairs in (("forward", kernels.forward_pairs), ("backward", kernels.backward_pairs)):
        report(name, cp_plan, f"pairs computed / one device, {pass_}", pairs / needed)
    report(name, cp_plan, "key bytes moved / full ring, forward and backward", moved["keys"] / (2 * ring * row * 2))
    for kind, planned in (("keys", 2 * rows * row * 2), ("gradients, torch.float32", rows * row * 4)):
        megabytes = f"{moved[kind] / 1e6:.1f} MB of {kind.replace('torch.', '')}"
        report(name, cp_plan, f"{megabytes} / the plan's", moved[kind] / planned if planned else float(moved[kind] == planned))


def report(name: str, cp_plan: CPPlan, what: str, ratio: float) -> None:
    """One row."""
    print(f"| {name} | virtual ring of {cp_plan.ring_size} | {what} | {ratio:.3f} |", flush=True)


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--counted-tokens", type=int, default=4096, help="of the packs that are counted, which is exact at any size")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{HEADS} query heads, {KV_HEADS} key head, width {WIDTH}, processes in fp32, one thread a process; virtual rings in bf16\n")
    print("| documents | ranks | what | ratio |\n|---|---|---|---|")
    measured_ring(arguments.tokens)
    num_tokens = arguments.counted_tokens
    counted(f"one of {num_tokens:,}", make_cp_plan(np.array([0, num_tokens]), 8))
    packed = np.unique(np.concatenate([[0, num_tokens], np.random.default_rng(0).integers(1, num_tokens, 12)]))
    counted(f"{len(packed) - 1} uneven in {num_tokens:,}", make_cp_plan(packed, 8))
    aligned = np.arange(65) * 1024
    counted("64 of 1,024, aligned", make_cp_plan(aligned, 4))


if __name__ == "__main__":
    main()
