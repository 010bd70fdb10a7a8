"""What the workers of a LayoutPool carry out for the tests of this folder."""

from __future__ import annotations

from typing import Any, Optional


def run(layout: Any, *, content: dict[str, Any], stop: Optional[int] = None) -> int:
    """Train a recipe under the layout of the pool's call; returns the steps done."""
    from mindspeed_vita.config import recipe_from_dict
    from mindspeed_vita.engine.loop import train

    sizes = {"tp": layout.tp_size, "pp": layout.pp_size, "cp": layout.cp_size}
    return train(recipe_from_dict({**content, "parallel": sizes}), stop_at_step=stop).step


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

    sizes = {"tp": layout.tp_size, "pp": layout.pp_size, "cp": layout.cp_size}
    recipe = recipe_from_dict({**content, "parallel": sizes})
    wrapped = optim.wrap_model(build_model(recipe, layout))
    optimizer = optim.build_optimizer(wrapped, recipe, get_platform())
    folder = native.find(source)
    fingerprint = native.load_state(folder).fingerprint
    state = native.load(folder, model=wrapped.module, optimizer=optimizer, recipe=recipe, fingerprint=fingerprint)
    native.save(target, state, model=wrapped.module, optimizer=optimizer, recipe=recipe, rng={}, keep=0)
