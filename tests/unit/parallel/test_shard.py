"""A rank's share of a pack: what is copied to the device, and from which memory."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from mindspeed_vita.checks.parity.packs import CONTEXT_TOKEN, MODEL, make_pack
from mindspeed_vita.config import Recipe, recipe_from_dict
from mindspeed_vita.data import batch
from mindspeed_vita.data.batch import IGNORE, PackedBatch
from mindspeed_vita.engine.feed import open_loader
from mindspeed_vita.parallel.shard import Sharder
from mindspeed_vita.platform import Platform
from mindspeed_vita.platform.cpu import CpuPlatform
from mindspeed_vita.sharding import index
from tests.tiny_checkpoint import alone


@pytest.mark.parametrize("pinned", [False, True])
def test_everything_is_copied_from_pinned_memory_where_there_is_some(pinned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    copied_from: list[torch.Tensor] = []
    waited: list[bool] = []
    to = torch.Tensor.to

    def copy(tensor: torch.Tensor, device: torch.device, non_blocking: bool) -> torch.Tensor:
        waited.append(not non_blocking)
        assert not pinned or any(tensor is known for known in copied_from), "a copy from pageable memory"
        return to(tensor, device)

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: copied_from.append(tensor) or tensor)
    monkeypatch.setattr(torch.Tensor, "to", copy)
    pack = make_pack(0, True, alone())
    inputs = Sharder(recipe(), alone(), with_memory(pinned=pinned))(pack)
    # the tiles, and one buffer of everything else
    assert inputs.route is not None and waited == [not pinned] * 2 and len(copied_from) == 2 * pinned
    monkeypatch.undo()
    plain = Sharder(recipe(), alone(), CpuPlatform())(pack)
    assert plain.route is not None
    for name in ("tokens_T", "labels_T", "weights_T", "supervised_Q", "sample_Q", "source_Q", "loss_count", "positions_T"):
        torch.testing.assert_close(getattr(inputs, name), getattr(plain, name), rtol=0, atol=0)
    assert torch.equal(inputs.route.send_rows, plain.route.send_rows) and torch.equal(inputs.route.targets, plain.route.targets)


def test_a_loaders_worker_plans_the_route(monkeypatch: pytest.MonkeyPatch) -> None:
    """The training process has nothing to plan, and finds the route that it would have planned."""
    layout = replace(alone(), tp_size=2, cp_size=2, cp_rank=1)

    class Packs:
        share = None

        def pack(self, number: int, **rank: Any) -> PackedBatch:
            return make_pack(number, True, layout)

        def locate(self, number: int) -> None:
            pass

    loader = open_loader(Packs(), recipe(), layout, start_pack=0)  # type: ignore[arg-type]
    loaded = next(iter(loader))
    loader.close()
    shard = Sharder(recipe(), layout, CpuPlatform())
    expected = shard(make_pack(0, True, layout)).route
    monkeypatch.setattr(batch, "tile_routes", lambda *a, **k: pytest.fail("planned in the training process"))
    found = shard(loaded).route
    assert found is not None and expected is not None
    assert torch.equal(found.send_rows, expected.send_rows) and torch.equal(found.targets, expected.targets)
    assert (found.send_counts, found.recv_counts) == (expected.send_counts, expected.recv_counts) and len(found.targets)


def test_context_tokens_without_tiles_are_refused() -> None:
    """A text pack with a stray context token would train on its embedding, which no vision row replaced."""
    text = replace(make_pack(1, True, alone()), context_ids=(CONTEXT_TOKEN,))
    stray = replace(text, tokens_T=text.tokens_T.index_fill(0, torch.tensor([5]), CONTEXT_TOKEN))
    shard = Sharder(recipe(), alone(), CpuPlatform())
    shard(text)
    with pytest.raises(ValueError, match="the pack holds 1 vision tokens but 0 tiles"):
        shard(stray)


@pytest.mark.parametrize("resets", [True, False])
@pytest.mark.parametrize("cp", [1, 2, 4])
def test_each_supervised_token_knows_its_sample_and_source(cp: int, resets: bool) -> None:
    whole: dict[int, tuple[int, int]] = {}
    for rank in range(cp):
        layout = replace(alone(), cp_size=cp, cp_rank=rank)
        pack = replace(make_pack(0, resets, layout), source_ids=torch.tensor([2, 0, 2, 1]))
        inputs = Sharder(recipe(), layout, CpuPlatform())(pack)
        assert inputs.sample_ids == (0, 1, 2, 3) and inputs.source_ids == (2, 0, 2, 1)
        own = torch.from_numpy(index(pack.cp_plan, rank))[inputs.supervised_Q]
        whole.update(zip(own.tolist(), zip(inputs.sample_Q.tolist(), inputs.source_Q.tolist())))
    bounds, expected = pack.sample_cu.tolist(), {}
    for sample, source in enumerate(pack.source_ids.tolist()):
        places = range(bounds[sample], bounds[sample + 1])
        expected.update({place: (sample, source) for place in places if pack.labels_T[place] != IGNORE})
    assert whole == expected and {sample for sample, _ in whole.values()} >= {0, 2}


def test_a_pack_of_padding_has_no_samples() -> None:
    inputs = Sharder(recipe(), alone(), CpuPlatform())(make_pack(3, True, alone()))
    assert inputs.sample_ids == () and len(inputs.sample_Q) == len(inputs.source_Q) == 0


def recipe() -> Recipe:
    return recipe_from_dict({"model": MODEL, "data": {"seq_length": 128, "num_workers": 1}, "train": {"global_batch": 1}})


def with_memory(*, pinned: bool) -> Platform:
    """The CPU as if it were an accelerator, with or without pinned memory."""
    platform = CpuPlatform()
    platform.capabilities = replace(platform.capabilities, accelerator=True, pinned_memory=pinned)
    return platform
