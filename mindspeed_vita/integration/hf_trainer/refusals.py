"""What a recipe may ask for and this engine does not do, each with the reason and the remedy."""

from __future__ import annotations

from mindspeed_vita.addresses import is_address
from mindspeed_vita.config import SUPERVISED, Recipe


def check(recipe: Recipe) -> None:
    """Refuses what transformers' Trainer cannot do with a recipe.

    Raises:
        ValueError: one message with every problem.
    """
    parallel, train, model = recipe.parallel, recipe.train, recipe.model
    cases = (
        (parallel.tp > 1, f"parallel.tp={parallel.tp}: Trainer's model is whole on every rank; use 1, and ZeRO-3 to share its weights"),
        (parallel.pp > 1, f"parallel.pp={parallel.pp}: Trainer has no pipeline; use 1, and ZeRO-3 to share the weights"),
        (parallel.vision_parallel != "balanced", "parallel.vision_parallel=tensor needs tensor parallelism; use balanced"),
        (
            train.objective != SUPERVISED,
            f"train.objective={train.objective}: the divisor of the loss must be known before the forward pass; use {SUPERVISED}",
        ),
        (
            train.recompute not in ("none", "full"),
            f"train.recompute={train.recompute}: transformers recomputes whole layers; use none or full",
        ),
        (model.lm_head != "masked", f"model.lm_head={model.lm_head}: logits are made for supervised tokens only; use masked"),
        (bool(recipe.eval.mixture), "eval.mixture: held-out loss is not measured while Trainer trains; use `vita eval loss` on the export"),
        (bool(recipe.profile.steps), "profile.steps: only the built-in engine records a trace; leave the profile section out"),
        (bool(recipe.debug.msprobe), "debug.msprobe: Trainer's steps are its own; leave it out, and call msprobe from a callback of yours"),
        (recipe.checkpoint.save_minutes > 0, "checkpoint.save_minutes: Trainer saves by steps; leave it out and use save_every"),
        (bool(recipe.checkpoint.store), "checkpoint.store: only the built-in engine sends checkpoints to a store; leave it out"),
        (is_address(recipe.checkpoint.init_from), "checkpoint.init_from is an address; only the built-in engine fetches it: name a folder"),
        (recipe.checkpoint.background, "checkpoint.background: Trainer writes while training waits; set it to false"),
    )
    problems = [problem for found, problem in cases if found]
    if problems:
        raise ValueError(f"--engine hf cannot run recipe {recipe.name!r}: " + "; ".join(problems))
