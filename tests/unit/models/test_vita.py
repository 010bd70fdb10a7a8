"""What a rank puts through the tower: tiles in parts where nothing is kept for a backward pass, a dummy where there are none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from mindspeed_vita.checks.parity.packs import MODEL
from mindspeed_vita.config import recipe_from_dict


@contextmanager
def vita(modules: list[str]) -> Iterator[tuple[Any, list[int]]]:
    """(model of one process in which these modules train, tiles of each call of its tower so far)."""
    from mindspeed_vita.engine.session import distributed
    from mindspeed_vita.platform import get_platform

    recipe = recipe_from_dict({"model": MODEL, "train": {"precision": "fp32", "modules": modules}})
    with distributed(recipe, get_platform("cpu")) as layout:
        from mindspeed_vita.parallel.build import build_model

        model, calls = build_model(recipe, layout), []
        model.vision.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
        yield model, calls


def tiles(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 56, 56), dtype=torch.uint8)


@pytest.mark.parametrize("modules", [["projector"], ["vision", "projector"]])
def test_without_gradients_a_tower_gives_the_same_features_in_parts(modules: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with vita(modules) as (model, calls):
        some = tiles(5)
        at_once = model._features(some, torch.float32)
        monkeypatch.setattr("mindspeed_vita.models.vita.TILES_AT_ONCE", 2)
        with torch.no_grad():
            in_parts = model._features(some, torch.float32)
    assert calls == [5, 2, 2, 1]
    # 0.0 was measured; a library for matrix products may sum in another order for another number of rows
    torch.testing.assert_close(in_parts, at_once, rtol=0, atol=1e-6 * float(at_once.abs().max()))


def test_a_tower_that_trains_encodes_all_its_tiles_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindspeed_vita.models.vita.TILES_AT_ONCE", 2)
    with vita(["vision", "projector"]) as (model, calls):
        assert model._features(tiles(5), torch.float32).requires_grad
    assert calls == [5]


@pytest.mark.parametrize(("modules", "encoded"), [(["vision", "projector"], [1]), (["projector", "language"], []), (["language"], [])])
def test_a_rank_without_tiles_takes_a_dummy_through_what_trains(modules: list[str], encoded: list[int]) -> None:
    with vita(modules) as (model, calls):
        trains = "projector" in modules
        rows = model._encode(tiles(0), trains, torch.zeros(1, 64))
        assert rows.shape == ((4, 64) if trains else (0, 64))
        if trains:
            (0 * rows.sum()).backward()
            for name in ("vision", "projector"):
                gradients = [parameter.grad for parameter in getattr(model, name).parameters()]
                assert all((gradient is not None and not gradient.any()) == (name in modules) for gradient in gradients)
    assert calls == encoded
