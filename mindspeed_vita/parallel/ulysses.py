"""Ulysses: neighbouring ranks swap tokens for heads around attention, alone or as one rank of a ring. Source: arXiv 2309.14509.

Each of u ranks holds a u-th of a stretch of tokens with all heads; one all-to-all gives it the whole stretch with a u-th of the heads,
attention follows (over the ring, if there is one), and a second all-to-all brings the outputs back.
Shapes: T tokens of this rank, N query heads, G key heads, D width of a head, u ranks.
"""

from __future__ import annotations

from typing import Any, Optional

import torch

from mindspeed_vita.models.kept_attention import KeptAttention
from mindspeed_vita.ops.attention import Backend
from mindspeed_vita.parallel.all_to_all import all_to_all
from mindspeed_vita.parallel.ring import ring_attention
from mindspeed_vita.parallel.ring_exchange import KeyExchange
from mindspeed_vita.sharding import CPPlan


def ulysses_attention(
    q_TND: torch.Tensor,
    k_TGD: torch.Tensor,
    v_TGD: torch.Tensor,
    cp_plan: CPPlan,
    *,
    scale: float,
    group: Any,
    exchange: KeyExchange,
    ring_rank: int,
    backend: Backend,
    kept: Optional[KeptAttention] = None,
) -> torch.Tensor:
    """Causal attention inside each document of the plan, over tokens spread over ring ranks of cp_plan.ulysses processes each.

    Args:
        q_TND: queries of this rank's tokens, in the order of sharding.index(cp_plan, cp_rank).
        k_TGD, v_TGD: its keys and values.
        cp_plan: owners and documents.
        scale: factor on the scores.
        group: the plan.ulysses processes of this ring rank.
        exchange: to the other ranks of the ring that this rank takes part in.
        ring_rank: its rank there.
        backend: attention kernels for this rank's heads / cp_plan.ulysses, as ops.attention.choose returns them.
        kept: as for ring_attention. Tokens and heads are swapped again all the same.

    Returns:
        out_TND in the dtype of q_TND.

    Raises:
        ValueError: the heads do not divide.
    """
    heads, kv_heads = q_TND.shape[1], k_TGD.shape[1]
    for name, count in (("query", heads), ("key", kv_heads)):
        if count % cp_plan.ulysses:
            raise ValueError(
                f"ulysses={cp_plan.ulysses} does not divide this rank's {count} {name} heads; "
                "use a divisor, less tensor parallelism, or the ring alone"
            )
    parts = [x.unflatten(1, (cp_plan.ulysses, -1)) for x in (q_TND, k_TGD, v_TGD)]
    # one exchange for all three: each rank's heads of q, k and v lie together
    one_each = (1,) * cp_plan.ulysses
    qkv = all_to_all(torch.cat(parts, dim=2).transpose(0, 1), one_each, one_each, group).flatten(0, 1)
    q, k, v = qkv.split([heads // cp_plan.ulysses, kv_heads // cp_plan.ulysses, kv_heads // cp_plan.ulysses], dim=1)
    ring: dict[str, Any] = {"exchange": exchange, "rank": ring_rank, "backend": backend, "kept": kept}
    out = ring_attention(q.contiguous(), k.contiguous(), v.contiguous(), cp_plan, scale=scale, **ring)
    by_token = all_to_all(out.unflatten(0, (cp_plan.ulysses, -1)), one_each, one_each, group)
    return by_token.transpose(0, 1).flatten(1, 2)
