"""Attention on Ascend by npu_fusion_attention, over cached keys by npu_fused_infer_attention_score, and the merge by
npu_ring_attention_update. Not run on Ascend hardware so far.

torch_npu is imported by the calls only. Shapes as in registry.py.
"""

from __future__ import annotations

from functools import cache, lru_cache, partial
from typing import Any, Iterator, Optional

import torch

from mindspeed_vita.ops.attention import blocks
from mindspeed_vita.ops.attention.blocks import PackedSegments
from mindspeed_vita.ops.attention.call import Blocks, Heads, Rows, Upstream
from mindspeed_vita.ops.attention.paged import Paged, gathered
from mindspeed_vita.ops.attention.varlen import varlen_backward, varlen_forward

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_WIDEST = 768
_MOST_HEADS = 256
_MOST_SEQUENCES = 1024
"""Of one call in layout TND."""
_MASK_SIZE = 2048
"""Side of the mask that stands for causal attention of any length."""
_FULL, _CAUSAL_FROM_BOTTOM_RIGHT = 0, 3
"""Sparse modes. Without a mask every mode means full attention."""
_PAGED_DTYPES = (torch.bfloat16, torch.float16)
_PAGED_WIDTHS = (64, 128)
"""Widths of heads that layout TND of npu_fused_infer_attention_score takes over blocks."""
_PAGE, _LARGEST_PAGE = 128, 512
"""A block of the cache has a multiple of this many tokens, and at most so many."""
_COPIES = 8
"""Softmax statistics come, and are wanted, eight times."""


def refuse(heads: Heads) -> Optional[str]:
    """Takes bf16, fp16 and fp32, up to 256 heads, of widths up to 768."""
    if heads.device.type != "npu":
        return f"runs on npu, not on {heads.device.type}"
    if heads.dtype not in _DTYPES:
        return f"takes bf16, fp16 and fp32, not {heads.dtype}"
    if heads.width > _WIDEST or heads.num_heads > _MOST_HEADS:
        return f"takes up to {_MOST_HEADS} heads of widths up to {_WIDEST}, not {heads.num_heads} of {heads.width}"
    return None


def tiles(q_BPND: torch.Tensor, k_BPND: torch.Tensor, v_BPND: torch.Tensor, scale: float) -> torch.Tensor:
    """Bidirectional attention inside each tile; see api.tile_attention. The gradient is torch_npu's own."""
    import torch_npu

    query, key, value = (x.contiguous() for x in (q_BPND, k_BPND, v_BPND))
    return torch_npu.npu_fusion_attention(query, key, value, query.shape[2], "BSND", scale=scale)[0]


class _Fusion:
    """npu_fusion_attention in layout TND over any number of sequences; see varlen.VarlenKernel.

    A log-sum-exp goes back as a maximum, with 1 for the sum: the kernel only uses exp(score - maximum) / sum.
    """

    def forward(self, rows: Blocks, packed: PackedSegments) -> tuple[torch.Tensor, torch.Tensor]:
        import torch_npu

        order, outs, lses = statistics_order(rows.q_TND.device), [], []
        for own, keys, lengths in _calls(packed):
            query, key, value = (x.contiguous() for x in (rows.q_TND[own], rows.k_SGD[keys], rows.v_SGD[keys]))
            masking = _masking(rows.causal, query.device)
            out, top, total = torch_npu.npu_fusion_attention(
                query, key, value, query.shape[1], "TND", scale=rows.scale, **masking, **lengths, **_layout(order)
            )[:3]
            outs.append(out)
            lses.append(_from_statistics(top[..., 0] + total[..., 0].log(), lengths["actual_seq_qlen"], order))
        return torch.cat(outs), torch.cat(lses).transpose(0, 1)

    def backward(
        self, rows: Blocks, upstream: Upstream, lse_NQ: torch.Tensor, packed: PackedSegments
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        import torch_npu

        order, parts = statistics_order(rows.q_TND.device), []
        for own, keys, lengths in _calls(packed):
            query, grad, out = (x[own].contiguous() for x in (rows.q_TND, upstream.grad_TND, upstream.out_TND))
            key, value = rows.k_SGD[keys].contiguous(), rows.v_SGD[keys].contiguous()
            lse_QN = lse_NQ[:, own].transpose(0, 1)
            top = _copies(_to_statistics(lse_QN, lengths["actual_seq_qlen"], order))
            parts.append(
                torch_npu.npu_fusion_attention_grad(
                    query,
                    key,
                    value,
                    grad,
                    query.shape[1],
                    "TND",
                    softmax_max=top,
                    softmax_sum=torch.ones_like(top),
                    attention_in=out,
                    scale_value=rows.scale,
                    **_masking(rows.causal, query.device),
                    **lengths,
                    **_layout(order),
                )[:3]  # 4 outputs in torch_npu 2.7.1, 5 in its post releases and from 2.9 on
            )
        dq, dk, dv = (torch.cat(part) for part in zip(*parts))
        return dq, dk, dv


blocks_forward = partial(varlen_forward, _Fusion())
blocks_backward = partial(varlen_backward, _Fusion())


def paged_forward(paged: Paged) -> tuple[torch.Tensor, torch.Tensor]:
    """See registry.Backend. What the fused kernel does not take goes to npu_fusion_attention, over a copy of the keys."""
    if not reads_pages(paged):
        return blocks_forward(gathered(paged))
    import torch_npu

    sequences = paged.sequences
    out_TND, lse_TN1 = torch_npu.npu_fused_infer_attention_score(
        paged.q_TND.contiguous(),
        paged.k_BSGD.flatten(2),
        paged.v_BSGD.flatten(2),
        num_heads=paged.q_TND.shape[1],
        num_key_value_heads=paged.k_BSGD.shape[2],
        input_layout="TND",
        scale=paged.scale,
        block_table=sequences.block_table,
        block_size=paged.k_BSGD.shape[1],
        actual_seq_lengths=sequences.query_ends.tolist(),  # cumulative, without a leading 0
        actual_seq_lengths_kv=sequences.lengths.tolist(),  # over blocks these are not cumulative
        softmax_lse_flag=True,
    )
    return out_TND, lse_TN1.squeeze(-1)


def reads_pages(paged: Paged) -> bool:
    """Whether npu_fused_infer_attention_score takes a call: bf16 and fp16, blocks of 128 to 512 tokens, heads of its widths."""
    page, width = paged.k_BSGD.shape[1], paged.q_TND.shape[2]
    fits = not page % _PAGE and page <= _LARGEST_PAGE and width in _PAGED_WIDTHS
    return fits and paged.q_TND.dtype in _PAGED_DTYPES


def merge_(out_TND: torch.Tensor, lse_TN: torch.Tensor, rows: Rows, block_out_QND: torch.Tensor, block_lse_QN: torch.Tensor) -> None:
    """See registry.Backend. One fused call where torch_npu has it for such heads, plain torch otherwise."""
    if can_merge(out_TND):
        out_TND[rows], lse_TN[rows] = merged(out_TND[rows], lse_TN[rows], block_out_QND.float(), block_lse_QN)
    else:
        blocks.merge_(out_TND, lse_TN, rows, block_out_QND, block_lse_QN)


def can_merge(out_TND: torch.Tensor) -> bool:
    """Whether `merged` serves outputs like these: torch_npu has the operator since 2.11 and 2.7.1.post8, for widths in multiples of 64."""
    import torch_npu

    return hasattr(torch_npu, "npu_ring_attention_update") and out_TND.shape[-1] % 64 == 0


def merged(
    out_TND: torch.Tensor, lse_TN: torch.Tensor, other_TND: torch.Tensor, other_lse_TN: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two partial results over the same rows as one: output, and its log-sum-exp in fp32. Has no gradient."""
    import torch_npu

    top, other_top = _copies(lse_TN), _copies(other_lse_TN)
    ones = torch.ones_like(top)
    out, top, total = torch_npu.npu_ring_attention_update(
        out_TND.contiguous(),
        top,
        ones,
        other_TND.contiguous(),
        other_top,
        ones,
        actual_seq_qlen=_bounds(len(out_TND), out_TND.device),
        input_layout="TND",
        input_softmax_layout="TND",
    )
    return out, top[..., 0] + total[..., 0].log()


@lru_cache(maxsize=256)
def _bounds(num_tokens: int, device: torch.device) -> torch.Tensor:
    """One sequence as the merge wants it: unlike in attention the lengths are cumulative with a leading 0, and lie on the device."""
    return torch.arange(2, dtype=torch.int64, device=device) * num_tokens  # made there: a copy would make the host wait


@cache
def statistics_order(device: torch.device) -> str:
    """TND or NTD: how the softmax statistics of layout TND lie in memory when TND is asked for. Tried out once on a tiny call.

    They have the shape [T, N, 8] either way, and CANN before 8.3 knows only NTD: sequence by sequence, each as [N, tokens].

    Raises:
        RuntimeError: they are in neither order.
    """
    import torch_npu

    # two queries, two heads: all scores of head 0 are 0 and all of head 1 are 1
    query = torch.zeros(2, 2, 16, dtype=torch.float16)
    query[:, 1] = 1.0
    query = query.to(device)
    statistics = torch_npu.npu_fusion_attention(
        query, torch.ones_like(query), query, 2, "TND", scale=1 / 16, actual_seq_qlen=[2], actual_seq_kvlen=[2], softmax_layout="TND"
    )[1]
    top = statistics[..., 0].flatten().cpu()
    for order, wanted in (("TND", [0.0, 1.0, 0.0, 1.0]), ("NTD", [0.0, 0.0, 1.0, 1.0])):
        if torch.allclose(top, torch.tensor(wanted), atol=1e-2):
            return order
    raise RuntimeError(f"softmax maxima {top.tolist()} are in neither TND nor NTD order; run scripts/npu_check.py to see what else differs")


def _layout(order: str) -> dict[str, Any]:
    return {"softmax_layout": "TND"} if order == "TND" else {}


def _masking(causal: bool, device: torch.device) -> dict[str, Any]:
    return {"atten_mask": _causal_mask(device), "sparse_mode": _CAUSAL_FROM_BOTTOM_RIGHT} if causal else {"sparse_mode": _FULL}


@cache
def _causal_mask(device: torch.device) -> torch.Tensor:
    return torch.ones(_MASK_SIZE, _MASK_SIZE, dtype=torch.bool).triu(1).to(device)


def _calls(packed: PackedSegments) -> Iterator[tuple[slice, slice, dict[str, list[int]]]]:
    """Query rows, key rows and cumulative lengths (on the host, without a leading 0) of as many segments as one call takes."""
    first_row = first_key = 0
    for start in range(0, len(packed.query_ends), _MOST_SEQUENCES):
        row_ends = packed.query_ends[start : start + _MOST_SEQUENCES]
        key_ends = packed.key_ends[start : start + _MOST_SEQUENCES]
        lengths = {
            "actual_seq_qlen": [end - first_row for end in row_ends],
            "actual_seq_kvlen": [end - first_key for end in key_ends],
        }
        yield slice(first_row, row_ends[-1]), slice(first_key, key_ends[-1]), lengths
        first_row, first_key = row_ends[-1], key_ends[-1]


def _from_statistics(values: torch.Tensor, ends: list[int], order: str) -> torch.Tensor:
    """[T, N] from statistics as the kernel lays them."""
    if order == "TND":
        return values
    heads, flat = values.shape[1], values.reshape(-1)
    return torch.cat([flat[start * heads : end * heads].view(heads, -1).T for start, end in zip([0, *ends], ends)])


def _to_statistics(values_TN: torch.Tensor, ends: list[int], order: str) -> torch.Tensor:
    """[T, N] as the kernel lays them; the inverse of _from_statistics."""
    if order == "TND":
        return values_TN
    return torch.cat([values_TN[start:end].T.reshape(-1) for start, end in zip([0, *ends], ends)]).view(values_TN.shape)


def _copies(values_TN: torch.Tensor) -> torch.Tensor:
    return values_TN.unsqueeze(-1).expand(*values_TN.shape, _COPIES).contiguous()
