"""How MindSpeed-LLM learns of this package: an entry in its list of features, with arguments and checks of its own."""

from __future__ import annotations

import argparse
from typing import Any

from mindspeed_vita.config import validate
from mindspeed_vita.integration.mindspeed_llm.arguments import recipe_from_arguments, register
from mindspeed_vita.integration.mindspeed_llm.refusals import check_arguments, check_tower


class VitaFeature:
    """The methods that MindSpeed's features manager calls; `feature()` joins them with MindSpeed's base class."""

    def register_args(self, parser: argparse.ArgumentParser) -> None:
        """Adds the --vita-... flags. MindSpeed's list can hold its features twice, and so calls this twice."""
        if not any(action.dest == "vita_stage" for action in parser._actions):
            register(parser)

    def pre_validate_args(self, arguments: argparse.Namespace) -> None:
        """Before Megatron's own checks: what cannot be trained is refused.

        Raises:
            ValueError: a flag or a setting does not fit, with what to change.
        """
        check_arguments(arguments)
        # the loss is a sum over tokens and is divided by their number once, over all packs of a step
        arguments.calculate_per_token_loss = True
        recipe = recipe_from_arguments(arguments)
        validate(recipe, arguments.world_size)
        check_tower(recipe)
        if arguments.lr_warmup_fraction:
            steps = arguments.lr_decay_iters or arguments.train_iters
            # whole steps, as in the built-in engine: Megatron would warm up for part of one
            arguments.lr_warmup_fraction = min(round(arguments.lr_warmup_fraction * steps), steps - 1) / steps


def feature() -> Any:
    """The feature, always on. MindSpeed must have been imported."""
    from mindspeed.features_manager.feature import MindSpeedFeature

    joined = type("VitaFeature", (VitaFeature, MindSpeedFeature), {})
    return joined("vita", optimization_level=0)
