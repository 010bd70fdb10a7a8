"""Shares of the loss: by token or by sample, and what a pack adds to the number that the loss is divided by."""

import pytest
import torch

from mindspeed_vita.config import recipe_from_dict, validate
from mindspeed_vita.data.batch import IGNORE


def rows(say):
    return [
        {"messages": say("Hello there", "Hi.", "And 12 dogs?", "Yes. A red car drives by, then stops.")},
        {"messages": say("A?", "B.")},
        {"messages": say("What?", "It's a cat and 12 dogs.")},
    ]


@pytest.mark.parametrize("resets", [True, False])
def test_every_sample_has_the_same_share(world, say, resets):
    pack = world.build(rows(say), resets=resets, loss_weighting="sample")[0]
    shares = [pack.weights_T[a:b].sum().item() for a, b in zip(pack.sample_cu[:-1], pack.sample_cu[1:])]
    assert shares == pytest.approx([1.0, 1.0, 1.0], rel=1e-6) and pack.loss_count == 3
    assert torch.equal(pack.weights_T > 0, pack.labels_T != IGNORE)
    lengths = [(pack.labels_T[a:b] != IGNORE).sum().item() for a, b in zip(pack.sample_cu[:-1], pack.sample_cu[1:])]
    assert len(set(lengths)) == 3, "answers of different lengths"


def test_every_token_has_the_same_share_by_default(world, say):
    pack = world.build(rows(say))[0]
    assert set(pack.weights_T.tolist()) == {0.0, 1.0} and pack.loss_count == int((pack.labels_T != IGNORE).sum())


def test_a_failed_sample_is_not_counted(world, say):
    pack = world.build(rows(say), loss_weighting="sample")[0]
    assert pack.with_failed(torch.tensor([False, True, False])).loss_count == 2
    assert pack.with_failed(torch.tensor([True, True, True])).loss_count == 0


def test_another_weighting_is_refused():
    with pytest.raises(ValueError, match="data.loss_weighting='document'; expected one of token, sample"):
        validate(recipe_from_dict({"data": {"loss_weighting": "document"}}))
