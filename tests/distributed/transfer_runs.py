"""What workers compute while their transfers are held back (tests/held_transfers.py), on whatever device the platform gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Optional

import numpy as np
import torch

from tests.held_transfers import held
from tests.mutants import mutated

SCALE = 0.2


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference over the largest expected entry; infinite for NaN."""
    difference = (found.detach().cpu().double() - wanted.detach().double()).abs().max() / wanted.detach().double().abs().max()
    return float(difference.nan_to_num(float("inf")))


def packs(num_tokens: int, width: int, heads: int = 4, kv_heads: int = 2) -> list[torch.Tensor]:
    """Queries, keys, values and the output's gradient, the same on every rank."""
    generator = torch.Generator().manual_seed(num_tokens + width)
    return [torch.randn(num_tokens, count, width, generator=generator) for count in (heads, kv_heads, kv_heads, heads)]


def attention(
    layout: Any,
    *,
    bounds: Sequence[int],
    width: int,
    dtype: str = "float32",
    parallel: Optional[dict[str, Any]] = None,
    local_world_size: int = 4,
) -> Optional[dict[str, float]]:
    """Ring attention, or a ring of Ulysses groups, over the processes of a layout against plain attention in fp64; on rank 0.

    parallel adds to the recipe's section. local_world_size is what each process takes for the size of its node.

    Errors are relative to the largest expected entry. Plain attention gets the same rounded tensors.
    """
    import torch.distributed as dist

    from mindspeed_vita.checks.hardware_check.exact import block_attention
    from mindspeed_vita.config import ParallelConfig
    from mindspeed_vita.ops.attention import Heads, choose
    from mindspeed_vita.parallel.build import DTYPES, attend_over
    from mindspeed_vita.parallel.ring_groups import with_ring
    from mindspeed_vita.platform import get_platform
    from mindspeed_vita.sharding import index, make_cp_plan

    device = get_platform().device
    settings = ParallelConfig(**(parallel or {}))
    layout = with_ring(layout, settings, local_world_size, device)
    cuts = np.array(bounds)
    cp_plan = make_cp_plan(cuts, layout.ring_size, node_size=layout.node_size).shared_by(settings.ulysses)
    tensors = [x.to(getattr(torch, dtype)) for x in packs(bounds[-1], width)]
    rows = [torch.from_numpy(index(cp_plan, rank)) for rank in range(layout.cp_size)]
    leaves = [x[rows[layout.cp_rank]].to(device).requires_grad_() for x in tensors[:3]]
    out = attend_over(layout, choose(Heads.of(leaves[0])), DTYPES[settings.ring_gradients])(*leaves, cp_plan, scale=SCALE)
    out.backward(tensors[3][rows[layout.cp_rank]].to(device))
    parts: list[Any] = [None] * layout.cp_size
    dist.all_gather_object(parts, [out.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves)])
    if layout.cp_rank:
        return None
    output, _, *gradients = block_attention(tensors, np.stack([cuts[:-1], cuts[1:]] * 2, axis=1), causal=True, scale=SCALE)
    errors = {}
    for number, (name, expected) in enumerate(zip(("out", "dq", "dk", "dv"), (output, *gradients))):
        whole = torch.full_like(expected, float("nan"))
        for part, own in zip(parts, rows):
            whole[own] = part[number].double()
        errors[name] = error(whole, expected)
    return errors


def vision_rows(layout: Any) -> dict[str, float]:
    """The exchange of vision rows with its gradient, every rank sending another number to every other; on each rank."""
    from mindspeed_vita.models.inputs import VisionRoute
    from mindspeed_vita.parallel.tile_exchange import GroupRowExchange
    from mindspeed_vita.platform import get_platform

    device, size, me = get_platform().device, layout.cp_size, layout.cp_rank

    def rows(sender: int, receiver: int) -> torch.Tensor:
        number = 1 + 2 * sender + receiver
        return 100.0 * sender + 10 * receiver + torch.arange(3 * number, dtype=torch.float32).view(number, 3)

    send, receive = ([rows(me, other) for other in range(size)], [rows(other, me) for other in range(size)])
    route = VisionRoute(
        send_rows=torch.arange(sum(map(len, send)), device=device).flip(0),
        send_counts=tuple(map(len, send)),
        recv_counts=tuple(map(len, receive)),
        targets=torch.arange(sum(map(len, receive)), device=device),
    )
    leaf = torch.cat(send).flip(0).to(device).requires_grad_()
    found = GroupRowExchange(layout.cp_group, size)(leaf, route)
    (found**2).sum().backward()
    assert leaf.grad is not None
    return {"rows": error(found, torch.cat(receive)), "gradient": error(leaf.grad, 2 * torch.cat(send).flip(0))}


def pixels(layout: Any) -> dict[str, float]:
    """Tiles that neighbours decoded, put together; the last rank has none."""
    from mindspeed_vita.parallel.tile_exchange import gather_tiles
    from mindspeed_vita.platform import get_platform

    counts = [3 - rank for rank in range(layout.tp_size - 1)] + [0]
    parts = [torch.full((count, 1, 2, 2), 10 * rank + 1, dtype=torch.uint8) for rank, count in enumerate(counts)]
    found = gather_tiles(parts[layout.tp_rank].to(get_platform().device), counts, layout.tp_group)
    return {"tiles": error(found, torch.cat(parts))}


def head(layout: Any) -> dict[str, float]:
    """The masked head's losses, and the gradient of this rank's hidden states, against plain cross-entropy."""
    from mindspeed_vita.parallel.lm_head import LanguageHead
    from mindspeed_vita.platform import get_platform

    device, size, me = get_platform().device, layout.tp_size, layout.tp_rank
    generator = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(*shape, generator=generator, requires_grad=True) for shape in ((16, 8), (12, 8)))
    labels = torch.randint(0, 12, (16,), generator=generator)
    labels[::3] = -100
    plain = torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="none", ignore_index=-100)
    (wanted,) = torch.autograd.grad(plain.sum(), hidden)
    mine = hidden.detach().chunk(size)[me].unsqueeze(1).to(device).requires_grad_()
    supervised = (labels != -100).nonzero().squeeze(1).to(device)
    module = LanguageHead(mode="masked", chunk=4, tp_rank=me, tp_size=size, tp_group=layout.tp_group)
    losses = module.losses(mine, weight.detach().chunk(size)[me].to(device), labels.to(device), torch.ones(16, device=device), supervised)
    (found,) = torch.autograd.grad(losses.sum(), mine)
    return {"losses": error(losses, plain), "gradient": error(found.squeeze(1), wanted.chunk(size)[me])}


WHAT: dict[str, Callable[..., Optional[dict[str, float]]]] = {
    "attention": attention,
    "vision rows": vision_rows,
    "pixels": pixels,
    "head": head,
}


def run(
    layout: Any, *, what: str, arguments: dict[str, Any], mutation: Optional[tuple[str, str, str]] = None
) -> tuple[dict[str, float], int, int, list[str]]:
    """Errors with transfers held back, how many were started, how many of them nobody waited for, and what happened to tensors under way.

    Args:
        layout: of the pool's call.
        what: a key of WHAT.
        arguments: its arguments.
        mutation: module, text and replacement.
    """
    with held() as log:
        if mutation is None:
            errors = WHAT[what](layout, **arguments)
        else:
            with mutated(*mutation):
                errors = WHAT[what](layout, **arguments)
        forgotten = len(log.pending)
    return errors or {}, log.started, forgotten, log.problems
