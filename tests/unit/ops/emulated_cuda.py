"""torch's CUDA attention kernels emulated on CPU tensors: what they refuse and return, with plain math inside.

The calls go through torch's dispatcher, so names, order and types of the arguments are checked against torch's own schemas,
and what the forward kernels return has the shapes of torch's own meta kernels. Shows nothing of the real kernels' speed or rounding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mindspeed_vita.ops.attention import Blocks, Upstream, reference

aten = torch.ops.aten
CAUSAL_FROM_TOP_LEFT = 1


def bounds_of(cu_seqlens: torch.Tensor, rows: int, longest: int) -> list[int]:
    assert cu_seqlens.dtype == torch.int32 and cu_seqlens.is_contiguous()
    bounds = cu_seqlens.tolist()
    assert bounds[0] == 0 and bounds[-1] == rows, "bounds must start with 0 and end with the number of rows"
    assert longest >= max(np.diff(bounds)), "the longest sequence is longer than said"
    return bounds


def varlen_segments(query, key, cu_q, cu_k, max_q, max_k) -> np.ndarray:
    q, k = bounds_of(cu_q, len(query), max_q), bounds_of(cu_k, len(key), max_k)
    assert len(q) == len(k)
    return np.array([(q[n], q[n + 1], k[n], k[n + 1]) for n in range(len(q) - 1)])


def flash_forward(query, key, value, cu_q, cu_k, max_q, max_k, causal, scale):
    for x in (query, key, value):
        assert x.dtype in (torch.bfloat16, torch.float16) and x.dim() == 3 and x.stride(-1) == 1
    segments = varlen_segments(query, key, cu_q, cu_k, max_q, max_k)
    out, lse = reference.blocks_forward(_blocks(query, key, value, segments, causal, scale))
    return out, lse.transpose(0, 1).contiguous()


def flash_backward(grad, query, key, value, out, lse, cu_q, cu_k, max_q, max_k, causal, scale):
    assert lse.dtype == torch.float32 and tuple(lse.shape) == (query.shape[1], len(query)) and lse.is_contiguous()
    assert grad.shape == out.shape == query.shape and grad.dtype == out.dtype == query.dtype
    segments = varlen_segments(query, key, cu_q, cu_k, max_q, max_k)
    dq, dkv = torch.zeros_like(query, dtype=torch.float32), torch.zeros(2, *key.shape)
    upstream = Upstream(grad_TND=grad, out_TND=out, lse_TN=lse.transpose(0, 1))
    reference.blocks_backward(_blocks(query, key, value, segments, causal, scale), upstream, dq_TND=dq, dkv_2SGD=dkv)
    return dq.to(query.dtype), dkv[0].to(key.dtype), dkv[1].to(value.dtype)


def _blocks(query, key, value, segments, causal, scale) -> Blocks:
    return Blocks(q_TND=query, k_SGD=key, v_SGD=value, segments=segments, causal=causal, scale=scale)


def _one(length_q: int, length_k: int) -> np.ndarray:
    return np.array([[0, length_q, 0, length_k]])


class EmulatedCudaKernels(TorchDispatchMode):
    """Serves the four calls on CPU tensors and records their names."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.name().split("::")[1]
        serve = getattr(self, name, None) if func.namespace == "aten" else None
        if serve is None:
            return func(*args, **kwargs)
        self.calls.append(name)
        result = serve(*args, **kwargs)
        if name.endswith("forward"):  # torch 2.13's meta kernel of the memory-efficient backward takes no scale
            meta = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in args]
            for given, wanted in zip(result, func(*meta, **kwargs)):
                if isinstance(given, torch.Tensor) and given.numel():
                    assert given.shape == wanted.shape and given.dtype == wanted.dtype, name
        return result

    def _flash_attention_forward(self, query, key, value, cu_q, cu_k, max_q, max_k, dropout, causal, debug, *, scale):
        assert dropout == 0.0 and not debug
        out, lse = flash_forward(query, key, value, cu_q, cu_k, max_q, max_k, causal, scale)
        return out, lse, torch.empty(0), torch.empty(0), torch.empty(0)

    def _flash_attention_backward(
        self, grad, query, key, value, out, lse, cu_q, cu_k, max_q, max_k, dropout, causal, rng_state, unused, *, scale
    ):
        assert dropout == 0.0 and rng_state.dtype == torch.uint64
        return flash_backward(grad, query, key, value, out, lse, cu_q, cu_k, max_q, max_k, causal, scale)

    def _efficient_attention_forward(self, query, key, value, bias, cu_q, cu_k, max_q, max_k, dropout, mask, with_lse, *, scale):
        assert query.shape[2] == key.shape[2] == value.shape[2], "this kernel knows no grouped queries"
        assert with_lse and dropout == 0.0 and bias is None and cu_q is None
        rows = query.shape[1]
        causal = mask == CAUSAL_FROM_TOP_LEFT
        out, lse = reference.blocks_forward(_blocks(query[0], key[0], value[0], _one(rows, key.shape[1]), causal, scale))
        padded = torch.full((1, query.shape[2], math.ceil(rows / 32) * 32), float("inf"))
        padded[0, :, :rows] = lse.transpose(0, 1)
        return out.unsqueeze(0), padded, torch.empty(0), torch.empty(0), rows, key.shape[1]

    def _efficient_attention_backward(
        self, grad, query, key, value, bias, out, cu_q, cu_k, max_q, max_k, lse, dropout, seed, offset, mask, bias_grad, *, scale
    ):
        rows, keys = query.shape[1], key.shape[1]
        assert (max_q, max_k) == (rows, keys) and lse.shape[-1] == math.ceil(rows / 32) * 32
        assert torch.isinf(lse[..., rows:]).all() and not bias_grad
        dq, dkv = torch.zeros_like(query[0]), torch.zeros(2, *key.shape[1:])
        upstream = Upstream(grad_TND=grad[0], out_TND=out[0], lse_TN=lse[0, :, :rows].transpose(0, 1))
        blocks = _blocks(query[0], key[0], value[0], _one(rows, keys), mask == CAUSAL_FROM_TOP_LEFT, scale)
        reference.blocks_backward(blocks, upstream, dq_TND=dq, dkv_2SGD=dkv)
        return dq.unsqueeze(0), dkv[0].unsqueeze(0), dkv[1].unsqueeze(0), torch.empty(0)
