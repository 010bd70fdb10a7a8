"""The head under tensor parallelism: one process's losses, gradients and logits, from no more rows than are supervised."""

from __future__ import annotations

import pytest
import torch

from tests.pools import Pools

RUN = "tests.distributed.layout_runs:head"
SPREADS = {"last quarter": list(range(24, 32)), "everywhere": list(range(0, 32, 3)), "one": [17], "none": [], "all": list(range(32))}


@pytest.mark.distributed
@pytest.mark.parametrize("mode", ["masked", "chunked", "original"])
@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("spread", SPREADS)
def test_equals_one_process(pools: Pools, mode: str, tp: int, spread: str) -> None:
    supervised, chosen = SPREADS[spread], [3, 31, 16]
    alone = pools("installed").run(RUN, mode=mode, supervised=supervised, chosen=chosen)[0]
    ranks = pools("installed").run(RUN, tp=tp, mode=mode, supervised=supervised, chosen=chosen)
    for rank in ranks:
        assert rank["rows"] == (max(1, len(supervised)) if mode == "masked" else 32)
        torch.testing.assert_close(rank["losses"], alone["losses"], rtol=0, atol=1e-5)
        torch.testing.assert_close(rank["logits"], alone["logits"], rtol=0, atol=1e-5)
    for name in ("hidden", "weight"):
        torch.testing.assert_close(torch.cat([rank[name] for rank in ranks]), alone[name], rtol=0, atol=1e-5)


@pytest.mark.distributed
def test_a_rank_without_chosen_rows_has_no_logits(pools: Pools) -> None:
    ranks = pools("installed").run(RUN, tp=2, mode="masked", supervised=[1], chosen=[])
    assert [tuple(rank["logits"].shape) for rank in ranks] == [(0, 48)] * 2
