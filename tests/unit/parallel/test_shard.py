"""A rank's share of a pack: what is copied to the device, and from which memory."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from mindspeed_vita.checks.parity.packs import CONTEXT_TOKEN, MODEL, make_pack
from mindspeed_vita.config import recipe_from_dict
from mindspeed_vita.data import batch
from mindspeed_vita.data.batch import PackedBatch
from mindspeed_vita.engine.feed import open_loader
from mindspeed_vita.parallel.shard import shard_batch
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
    inputs = shard_batch(
        pack, alone(), torch.device("cpu"), tokens_per_tile=tokens_per_tile(), vision_parallel="balanced", pinned_memory=pinned
    )
    # tokens, labels, weights, supervised tokens, count, positions, tiles, and the route's two
    assert inputs.route is not None and waited == [not pinned] * 9 and len(copied_from) == 9 * pinned


def test_a_loaders_worker_plans_the_route(monkeypatch: pytest.MonkeyPatch) -> None:
    """The training process has nothing to plan, and finds the route that it would have planned."""
    layout = replace(alone(), tp_size=2, cp_size=2, cp_rank=1)
    recipe = recipe_from_dict({"model": MODEL, "data": {"seq_length": 128, "num_workers": 1}, "train": {"global_batch": 1}})

    class Packs:
        def pack(self, number: int, **rank: Any) -> PackedBatch:
            return make_pack(number, True, layout)

        def locate(self, number: int) -> None:
            pass

    loader = open_loader(Packs(), recipe, layout, start_pack=0)  # type: ignore[arg-type]
    loaded = next(iter(loader))
    loader.close()
    move = {"tokens_per_tile": tokens_per_tile(), "vision_parallel": "balanced"}
    expected = shard_batch(make_pack(0, True, layout), layout, torch.device("cpu"), **move).route
    monkeypatch.setattr(batch, "tile_routes", lambda *a, **k: pytest.fail("planned in the training process"))
    found = shard_batch(loaded, layout, torch.device("cpu"), **move).route
    assert found is not None and expected is not None
    assert torch.equal(found.send_rows, expected.send_rows) and torch.equal(found.targets, expected.targets)
    assert (found.send_counts, found.recv_counts) == (expected.send_counts, expected.recv_counts) and len(found.targets)


def test_context_tokens_without_tiles_are_refused() -> None:
    """A text pack with a stray context token would train on its embedding, which no vision row replaced."""
    text = replace(make_pack(1, True, alone()), context_ids=(CONTEXT_TOKEN,))
    stray = replace(text, tokens_T=text.tokens_T.index_fill(0, torch.tensor([5]), CONTEXT_TOKEN))
    shard_batch(text, alone(), torch.device("cpu"), tokens_per_tile=tokens_per_tile(), vision_parallel="balanced")
    with pytest.raises(ValueError, match="the pack holds 1 vision tokens but 0 tiles"):
        shard_batch(stray, alone(), torch.device("cpu"), tokens_per_tile=tokens_per_tile(), vision_parallel="balanced")


def tokens_per_tile() -> int:
    return recipe_from_dict({"model": MODEL}).model.tokens_per_tile
