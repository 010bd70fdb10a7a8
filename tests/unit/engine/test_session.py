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
