"""Process groups that cannot be made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from megatron.core import parallel_state

from mindspeed_vita.engine import session
from mindspeed_vita.platform import get_platform
from tests.tiny_data import TinyData

GLOO = "Gloo connectFullMesh failed with [pair.cc:553] Connection closed by peer [127.0.0.1]:28838. This is typically caused by a worker"


@pytest.mark.parametrize("error", [RuntimeError(GLOO), dist.DistNetworkError("the client socket has failed")])
def test_a_process_that_ends_while_groups_form_is_one_message(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def fails(**sizes: Any) -> None:
        raise error

    monkeypatch.setattr(parallel_state, "initialize_model_parallel", fails)
    with pytest.raises(session.NotConnected, match=r"process 0 of 1 could not be connected.*start again") as found:
        session.init_distributed(tiny.recipe(tmp_path), get_platform())
    assert "\n" not in str(found.value) and str(error)[:80] in str(found.value)
    session.shutdown()


def test_another_fault_while_groups_form_stays_what_it_is(tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**sizes: Any) -> None:
        raise RuntimeError("world size (1) is not divisible by 2")

    monkeypatch.setattr(parallel_state, "initialize_model_parallel", fails)
    with pytest.raises(RuntimeError, match="not divisible"):
        session.init_distributed(tiny.recipe(tmp_path), get_platform())
    session.shutdown()


class Store:
    """The common store of a run whose processes each ask at the given moments, counted in looks at it."""

    def __init__(self, asked: int, of: int, gone: bool = False) -> None:
        self.asked, self.of, self.gone, self.looks = asked, of, gone, 0

    def add(self, key: str, number: int) -> int:
        assert number == 0, "who waits does not count as one that asked"
        self.looks += 1
        if self.gone:
            raise dist.DistNetworkError("Connection reset by peer")
        self.asked = min(self.of, self.asked + 1)
        return self.asked


@pytest.mark.parametrize(("rank", "gone", "looks"), [(0, False, 3), (1, False, 0), (0, True, 1)])
def test_the_process_that_keeps_the_store_stays_until_all_have_asked_or_the_store_is_gone(
    rank: int, gone: bool, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that fails must not keep the process from its exit status."""
    store = Store(asked=1, of=4, gone=gone)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    for name, value in {"is_initialized": True, "get_rank": rank, "get_world_size": 4}.items():
        monkeypatch.setattr(dist, name, lambda value=value: value)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(session, "_STAY_SECONDS", 600.0)
    session.stay_for_others()
    assert store.looks == looks
