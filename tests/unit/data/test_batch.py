"""Taking failed samples out of a pack."""

import torch

from mindspeed_vita.data.batch import IGNORE
from mindspeed_vita.hf.tiling import BACKGROUND


def test_with_failed_masks_one_sample_and_leaves_the_others(world, picture, say):
    for name in "ab":
        picture(28, 28).save(world.folder / f"{name}.png")
    rows = [{"messages": say("<image>?", "A cat."), "images": [f"{name}.png"]} for name in "ab"]
    pack = world.build(rows)[0]
    masked = pack.with_failed(torch.tensor([False, True]))
    first, second = (slice(int(pack.sample_cu[n]), int(pack.sample_cu[n + 1])) for n in (0, 1))
    assert torch.equal(masked.labels_T[first], pack.labels_T[first]) and (masked.labels_T[second] == IGNORE).all()
    assert masked.weights_T.sum() == pack.weights_T[first].sum() and masked.failed.tolist() == [False, True]
    assert torch.equal(masked.tiles_NCHW[0], pack.tiles_NCHW[0])
    assert torch.equal(masked.tiles_NCHW[1, :, 0, 0], torch.tensor(BACKGROUND, dtype=torch.uint8))
    assert torch.equal(masked.tokens_T, pack.tokens_T) and torch.equal(masked.tile_first_token, pack.tile_first_token)
    assert pack.failed.tolist() == [False, False], "the pack itself is not changed"


def test_nothing_new_costs_nothing(world, say):
    pack = world.build([{"messages": say("A?", "B.")}])[0]
    assert pack.with_failed(torch.tensor([False])) is pack


def test_a_failure_stays_failed(world, say):
    pack = world.build([{"messages": say("A?", "B.")}, {"messages": say("C?", "D.")}])[0]
    both = pack.with_failed(torch.tensor([True, False])).with_failed(torch.tensor([False, True]))
    assert both.failed.all() and (both.labels_T == IGNORE).all()
    assert both.tiles_NCHW.shape == (0, 3, 28, 28)
