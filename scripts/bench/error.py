"""Error of ring attention in bf16 against fp64, forward and backward, next to one device's flash attention in bf16.

    OMP_NUM_THREADS=1 python scripts/bench/error.py [--tokens 2048]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F

from mindspeed_vita.parallel.virtual_ring import virtual_ring_attention
from mindspeed_vita.sharding import plan

HEADS, KV_HEADS, WIDTH = 5, 1, 128


def flash(leaves: list[torch.Tensor], grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Output and gradients of torch's fused attention on one device."""
    query, key, value = (x.detach().clone().requires_grad_() for x in leaves)
    heads_first = [x.transpose(0, 1).unsqueeze(0) for x in (query, key, value)]
    out = F.scaled_dot_product_attention(*heads_first, is_causal=True, scale=WIDTH**-0.5, enable_gqa=True)
    out = out.squeeze(0).transpose(0, 1)
    return out.detach(), *torch.autograd.grad(out, (query, key, value), grad)


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    num_tokens = parser.parse_args().tokens
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(num_tokens, heads, WIDTH, generator=generator).bfloat16() for heads in (HEADS, KV_HEADS, KV_HEADS)]
    grad = torch.randn(num_tokens, HEADS, WIDTH, generator=generator).bfloat16()
    exact = flash([x.double() for x in leaves], grad.double())

    def errors(found: tuple[torch.Tensor, ...]) -> list[float]:
        return [float((ours.double() - want).norm() / want.norm()) for ours, want in zip(found, exact)]

    base = errors(flash(leaves, grad))
    print(f"one document of {num_tokens:,} tokens, {HEADS} query heads, {KV_HEADS} key head, width {WIDTH}, bf16; error relative to fp64\n")
    print("| | out | dq | dk | dv | worst / flash |\n|---|---|---|---|---|---|")
    print("| one device, flash | " + " | ".join(f"{error:.2e}" for error in base) + " | 1.00 |")
    for cp_size in (2, 4, 8):
        ring = errors(virtual_ring_attention(*leaves, grad, plan(np.array([0, num_tokens]), cp_size), scale=WIDTH**-0.5))
        worst = max(ours / one for ours, one in zip(ring, base))
        print(f"| ring of {cp_size} | " + " | ".join(f"{error:.2e}" for error in ring) + f" | {worst:.2f} |")


if __name__ == "__main__":
    main()
