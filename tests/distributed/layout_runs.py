"""What the workers of a LayoutPool carry out for the tests of this folder."""

from __future__ import annotations

from typing import Any, Optional

import torch


def run(layout: Any, *, content: dict[str, Any], stop: Optional[int] = None) -> int:
    """Train a recipe under the layout of the pool's call; returns the steps done."""
    from mindspeed_vita.config import recipe_from_dict
    from mindspeed_vita.engine.loop import train

    return train(recipe_from_dict(_under(layout, content)), stop_at_step=stop).step


def _under(layout: Any, content: dict[str, Any]) -> dict[str, Any]:
    """The recipe with the sizes of a layout."""
    return {**content, "parallel": {**content["parallel"], "tp": layout.tp_size, "pp": layout.pp_size, "cp": layout.cp_size}}


def answer(layout: Any, *, folder: str, prompt: str, images: list[str], videos: list[str]) -> tuple[int, ...]:
    """Tokens that `vita generate` finds on this rank, under the tp and cp of the pool's call."""
    from mindspeed_vita.inference.generate import load_native
    from mindspeed_vita.inference.request import ask

    generator = load_native(folder, tp=layout.tp_size, cp=layout.cp_size)
    return generator.generate(ask(prompt, images, videos), max_new_tokens=8).token_ids


def load_and_save(layout: Any, *, content: dict[str, Any], source: str, target: str) -> None:
    """Loads a checkpoint into a fresh model and optimizer under the layout of the pool's call, and saves it again, untrained."""
    from mindspeed_vita.checkpoint import native
    from mindspeed_vita.config import recipe_from_dict
    from mindspeed_vita.engine import optimizer as optim
    from mindspeed_vita.parallel.build import build_model
    from mindspeed_vita.platform import get_platform

    recipe = recipe_from_dict(_under(layout, content))
    wrapped = optim.wrap_model(build_model(recipe, layout))
    optimizer = optim.build_optimizer(wrapped, recipe, get_platform())
    folder = native.find(source)
    fingerprint = native.load_state(folder).fingerprint
    state = native.load(folder, model=wrapped.module, optimizer=optimizer, recipe=recipe, fingerprint=fingerprint)
    native.save(target, state, model=wrapped.module, optimizer=optimizer, recipe=recipe, rng={}, keep=0)


def initial_tower(layout: Any, *, content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """This rank's initial weights of tower and projector."""
    from mindspeed_vita.config import recipe_from_dict
    from mindspeed_vita.parallel.build import build_model

    model = build_model(recipe_from_dict(_under(layout, content)), layout)
    return {name: parameter.detach() for name, parameter in model.named_parameters() if not name.startswith("language.")}
