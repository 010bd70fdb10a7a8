"""Error of ring attention in bf16 against fp64, forward and backward, next to one device's flash attention in bf16.

    OMP_NUM_THREADS=1 python scripts/bench/error.py [--tokens 2048 8192] [--rings 2 4 8 16 32]
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

with packages_needed():
    import numpy as np
    import torch
    import torch.nn.functional as F

    from mindspeed_vita.checks.virtual_ring import virtual_ring_attention
    from mindspeed_vita.sharding import make_cp_plan

HEADS, KV_HEADS, WIDTH = 5, 1, 128
PACKS = {"one document of": (0.0, 1.0), "5 documents in": (0.0, 0.08, 0.09, 0.45, 0.55, 1.0)}
"""Document bounds as parts of a pack."""


def flash(leaves: list[torch.Tensor], grad: torch.Tensor, bounds: np.ndarray) -> tuple[torch.Tensor, ...]:
    """Output and gradients of torch's fused attention on one device, document by document."""
    query, key, value = (x.detach().clone().requires_grad_() for x in leaves)
    outs = []
    for start, stop in zip(bounds[:-1], bounds[1:]):
        heads_first = [x[start:stop].transpose(0, 1).unsqueeze(0) for x in (query, key, value)]
        out = F.scaled_dot_product_attention(*heads_first, is_causal=True, scale=WIDTH**-0.5, enable_gqa=True)
        outs.append(out.squeeze(0).transpose(0, 1))
    whole = torch.cat(outs)
    return whole.detach(), *torch.autograd.grad(whole, (query, key, value), grad)


def compare(name: str, bounds: np.ndarray, rings: list[int]) -> None:
    """Rows of one pack: one device, and each ring."""
    num_tokens = int(bounds[-1])
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(num_tokens, heads, WIDTH, generator=generator).bfloat16() for heads in (HEADS, KV_HEADS, KV_HEADS)]
    grad = torch.randn(num_tokens, HEADS, WIDTH, generator=generator).bfloat16()
    exact = flash([x.double() for x in leaves], grad.double(), bounds)

    def errors(found: tuple[torch.Tensor, ...]) -> list[float]:
        return [float((ours.double() - want).norm() / want.norm()) for ours, want in zip(found, exact)]

    base = errors(flash(leaves, grad, bounds))

    def row(what: str, found: list[float]) -> None:
        worst = max(ours / one for ours, one in zip(found, base))
        print(f"| {name} {num_tokens:,} | {what} | " + " | ".join(f"{error:.2e}" for error in found) + f" | {worst:.2f} |", flush=True)

    row("one device, flash", base)
    for ring_size, (dtype, note) in product(rings, {torch.float32: "", torch.bfloat16: ", ring_gradients bf16"}.items()):
        plan = make_cp_plan(bounds, ring_size)
        row(f"ring of {ring_size}{note}", errors(virtual_ring_attention(*leaves, grad, plan, scale=WIDTH**-0.5, gradients=dtype)))


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--rings", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{HEADS} query heads, {KV_HEADS} key head, width {WIDTH}, bf16; error relative to fp64\n")
    print("| pack | | out | dq | dk | dv | worst / flash |\n|---|---|---|---|---|---|---|")
    for num_tokens, (name, parts) in product(arguments.tokens, PACKS.items()):
        compare(name, np.array([round(part * num_tokens) for part in parts]), arguments.rings)


if __name__ == "__main__":
    main()
