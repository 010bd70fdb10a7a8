"""Block attention by a kernel for variable lengths: gathers the rows of the segments, makes few calls, puts the results back."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch

from mindspeed_vita.ops.attention.blocks import PackedSegments, add_rows_, pack_segments
from mindspeed_vita.ops.attention.call import Blocks, Upstream


class VarlenKernel(Protocol):
    """One fused kernel over several sequences that lie one after the other.

    The tensors of `rows` and `upstream` hold the rows of those sequences alone; `packed` has their bounds. Q query rows, K key rows.
    """

    def forward(self, rows: Blocks, packed: PackedSegments) -> tuple[torch.Tensor, torch.Tensor]:
        """out_QND and its log-sum-exp, fp32 [N, Q]."""

    def backward(
        self, rows: Blocks, upstream: Upstream, lse_NQ: torch.Tensor, packed: PackedSegments
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """dq, dk, dv of those rows. lse_NQ is upstream.lse_TN as kernels want it: contiguous, heads first."""


def varlen_forward(kernel: VarlenKernel, blocks: Blocks) -> tuple[torch.Tensor, torch.Tensor]:
    """Backend.blocks_forward by as few calls of the kernel as copies of keys allow; see pack_segments."""
    outs, lses = [], []
    for packed in pack_segments(blocks.segments, blocks.q_TND.device):
        out_QND, lse_NQ = kernel.forward(_rows_of(blocks, packed), packed)
        outs.append(out_QND)
        lses.append(lse_NQ.transpose(0, 1))
    return (outs[0], lses[0]) if len(outs) == 1 else (torch.cat(outs), torch.cat(lses))


def varlen_backward(
    kernel: VarlenKernel, blocks: Blocks, upstream: Upstream, *, dq_TND: torch.Tensor, dkv_2SGD: torch.Tensor
) -> None:
    """Backend.blocks_backward by the same calls."""
    for packed in pack_segments(blocks.segments, blocks.q_TND.device):
        grad, out, lse_QN = (x[packed.query_rows] for x in (upstream.grad_TND, upstream.out_TND, upstream.lse_TN))
        own = Upstream(grad_TND=grad.contiguous(), out_TND=out, lse_TN=lse_QN)
        # kernels read the log-sum-exp without regard to strides
        dq, dk, dv = kernel.backward(_rows_of(blocks, packed), own, lse_QN.transpose(0, 1).contiguous(), packed)
        add_rows_(dq_TND, packed.query_rows, dq)
        add_rows_(dkv_2SGD[0], packed.key_rows, dk)
        add_rows_(dkv_2SGD[1], packed.key_rows, dv)


def _rows_of(blocks: Blocks, packed: PackedSegments) -> Blocks:
    """The same call over the rows of some of its segments alone."""
    query, key, value = blocks.q_TND[packed.query_rows], blocks.k_SGD[packed.key_rows], blocks.v_SGD[packed.key_rows]
    return replace(blocks, q_TND=query, k_SGD=key, v_SGD=value)
