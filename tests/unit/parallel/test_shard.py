"""A rank's share of a pack: what is copied to the device, and from which memory."""

import pytest
import torch

from mindspeed_vita.engine.parity.packs import MODEL, make_pack
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


def tokens_per_tile() -> int:
    from mindspeed_vita.config import recipe_from_dict

    return recipe_from_dict({"model": MODEL}).model.tokens_per_tile
