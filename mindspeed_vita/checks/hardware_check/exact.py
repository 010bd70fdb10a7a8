"""Attention in fp64 on the host, which the checks compare with, and the error that they state.

Shapes: T query tokens, S keys, N query heads, G key heads, D width of a head.
"""

from __future__ import annotations

import numpy as np
import torch


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is right."""
    wanted = wanted.detach().double().cpu()
    return float((found.detach().cpu().double() - wanted).norm() / wanted.norm())


def random_tensors(shapes: list[tuple[int, ...]], dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    """Normal numbers, rounded to a dtype: the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator).to(dtype) for shape in shapes]


def block_attention(
    tensors: list[torch.Tensor], segments: np.ndarray, *, causal: bool, scale: float
) -> tuple[torch.Tensor, ...]:
    """Output and log-sum-exp of every segment's rows, one after the other, and the gradients of queries, keys and values.

    Args:
        tensors: q_TND, k_SGD, v_SGD and the gradient of the output, a row for each query.
        segments: int64[n, 4], as ops.attention.Blocks has them.
        causal: whether the segments are squares with causal attention inside.
        scale: factor on the scores.
    """
    query, key, value, grad = (x.double().cpu() for x in tensors)
    leaves = [x.requires_grad_() for x in (query, key, value)]
    outs, lses, grads = [], [], []
    for q0, q1, k0, k1 in segments.tolist():
        keys, values = (x[k0:k1].repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
        scores_NQS = torch.einsum("qnd,snd->nqs", query[q0:q1], keys) * scale
        if causal:
            hidden = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).triu(1)
            scores_NQS = scores_NQS.masked_fill(hidden, float("-inf"))
        outs.append(torch.einsum("nqs,snd->qnd", scores_NQS.softmax(-1), values))
        lses.append(scores_NQS.logsumexp(-1).T)
        grads.append(grad[q0:q1])
    out = torch.cat(outs)
    return out.detach(), torch.cat(lses).detach(), *torch.autograd.grad(out, leaves, torch.cat(grads))
