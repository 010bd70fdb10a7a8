"""What Ulysses cannot deal out is refused before anything is sent; that it is exact is shown by tests/parity/test_layouts.py."""

import numpy as np
import pytest
import torch

from mindspeed_vita.ops.attention import reference
from mindspeed_vita.parallel.ring_exchange import Channel, GroupKeyExchange
from mindspeed_vita.parallel.ulysses import ulysses_attention
from mindspeed_vita.sharding import make_cp_plan


@pytest.mark.parametrize("heads, kv_heads, name", [(3, 2, "3 query"), (4, 1, "1 key")])
def test_heads_that_do_not_divide_are_refused(heads: int, kv_heads: int, name: str) -> None:
    q, k = torch.zeros(4, heads, 8), torch.zeros(4, kv_heads, 8)
    with pytest.raises(ValueError, match=f"ulysses=2 does not divide this rank's {name} heads; use a divisor"):
        shared = make_cp_plan(np.array([0, 8]), 1).shared_by(2)
        ulysses_attention(q, k, k, shared, scale=1.0, group=None, exchange=GroupKeyExchange(Channel(None)), ring_rank=0, backend=reference)
