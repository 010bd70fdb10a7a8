"""Towers and projectors are chosen by name, and a wrong name is refused with the right ones."""

import pytest
import torch

from mindspeed_vita.models.registry import Registry


def test_builders_are_found_added_and_refused_by_name() -> None:
    registry = Registry("model.part", plain=torch.nn.Linear)
    assert registry.build("plain", 2, 3).out_features == 3
    registry.register("other", torch.nn.Identity)
    assert isinstance(registry.build("other"), torch.nn.Identity)
    with pytest.raises(ValueError, match="model.part 'plain' is registered already"):
        registry.register("plain", torch.nn.Identity)
    with pytest.raises(ValueError, match="model.part='nothing'; expected one of other, plain"):
        registry.build("nothing")
