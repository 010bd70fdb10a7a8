"""The lean forward pass equals megatron's own, for every decoder family."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.config import language_names
from mindspeed_vita.engine import session as processes
from mindspeed_vita.inference.cached_attention import CachedAttention
from mindspeed_vita.inference.decoder import Decoder
from mindspeed_vita.inference.kv_cache import KVCache
from mindspeed_vita.inference.loading import inference_recipe
from mindspeed_vita.inference.plans import plan_decode, plan_prefill
from mindspeed_vita.inference.steps import BlockRef, DecodeRow, PrefillChunk
from mindspeed_vita.models.packed_context import PackedContext
from mindspeed_vita.ops.attention import torch_native
from mindspeed_vita.platform import get_platform
from mindspeed_vita.sharding import make_cp_plan
from tests.tiny_checkpoint import TINY, random_weights, tiny_recipe

TOKENS, SIZE = 23, 8
TABLE = tuple(BlockRef(0, block) for block in (2, 0, 3))


@pytest.mark.parametrize("family", language_names())
def test_it_equals_megatrons_forward(family: str) -> None:
    """In one chunk, and over two chunks and a token."""
    architecture = replace(TINY, language=replace(TINY.language, family=family))
    recipe = inference_recipe(tiny_recipe(architecture), 1, 1)
    borrowed = torch.distributed.is_initialized()
    layout = processes.init_distributed(recipe, get_platform())
    from mindspeed_vita.parallel.build import build_model

    model = build_model(recipe, layout, sequence_parallel=False).eval()
    native.load_full_weights(random_weights(architecture), model, source="test")
    hidden = torch.randn(TOKENS, architecture.language.hidden_size, generator=torch.Generator().manual_seed(0))
    cos, sin = model.rotary(torch.arange(TOKENS), longest=TOKENS)
    context = PackedContext(cp_plan=make_cp_plan([0, TOKENS], 1), cos_TD=cos, sin_TD=sin)
    with torch.no_grad():
        wanted = model.language.decoder(hidden_states=hidden.unsqueeze(1), attention_mask=None, packed_seq_params=context).squeeze(1)
        whole = _run(model, architecture.language, layout, hidden, [(0, TOKENS)])
        parts = _run(model, architecture.language, layout, hidden, [(0, 16), (16, 22), (22, 23)])
    if not borrowed:
        processes.shutdown()
    torch.testing.assert_close(whole, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(parts, wanted, rtol=0, atol=1e-5)


def _run(model: Any, language: Any, layout: Any, hidden_TH: torch.Tensor, pieces: list[tuple[int, int]]) -> torch.Tensor:
    cpu = torch.device("cpu")
    sizes = {"num_layers": language.num_layers, "kv_heads": language.num_kv_heads, "head_dim": language.head_dim}
    cache = KVCache(num_blocks=4, block_size=SIZE, dtype=torch.float32, device=cpu, **sizes)
    decoder = Decoder(model.language, language, layout, CachedAttention(cache, torch_native))  # type: ignore[arg-type]
    outs = []
    for start, stop in pieces:
        tables = model.rotary(torch.arange(start, stop), longest=TOKENS)
        if stop - start == 1:
            step = plan_decode([DecodeRow(0, start, 0, TABLE)], rank=0, block_size=SIZE, device=cpu)
            outs.append(decoder(hidden_TH[start:stop], step, *tables))
            continue
        chunk = plan_prefill([PrefillChunk(0, start, stop, TABLE)], rank=0, size=1, block_size=SIZE, device=cpu)
        padded, tables = torch.cat([hidden_TH[start:stop], hidden_TH[:1]]), tuple(torch.cat([table, table[:1]]) for table in tables)
        outs.append(decoder(padded, chunk, *tables)[:-1])
    return torch.cat(outs)
