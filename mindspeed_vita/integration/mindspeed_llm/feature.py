"""How MindSpeed-LLM learns of this package: an entry in its list of features, with arguments and checks of its own."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Optional

from mindspeed_vita.config import validate
from mindspeed_vita.integration.mindspeed_llm.arguments import recipe_from_arguments, register
from mindspeed_vita.integration.mindspeed_llm.high_availability import check_replicas
from mindspeed_vita.integration.mindspeed_llm.parser_table import refuse_line
from mindspeed_vita.integration.mindspeed_llm.refusals import check_arguments, check_pipeline, check_stores, check_tower, uneven_pipeline
from mindspeed_vita.integration.mindspeed_llm.saved import check_writer
from mindspeed_vita.integration.mindspeed_llm.verdicts import told


class VitaFeature:
    """The methods that MindSpeed's features manager calls; `feature()` joins them with MindSpeed's base class."""

    parser: Optional[argparse.ArgumentParser] = None
    """The parser of the run, with every flag once the other features have added theirs."""

    def register_args(self, parser: argparse.ArgumentParser) -> None:
        """Adds the --vita-... flags. MindSpeed's list can hold its features twice, and so calls this twice."""
        if not any(action.dest == "vita_stage" for action in parser._actions):
            register(parser)
        parser.error = refuse_line  # type: ignore[assignment]  # one line instead of a usage of 800
        self.parser = parser

    def pre_validate_args(self, arguments: argparse.Namespace) -> None:
        """Before Megatron's own checks: what cannot be trained is refused, and what has no effect is said.

        Raises:
            ValueError: a flag or a setting does not fit, with what to change.
        """
        assert self.parser is not None
        recipe = recipe_from_arguments(arguments)
        check_writer(arguments)
        unused = check_arguments(self.parser, arguments, told(sys.argv[1:]), recipe.model.language)
        for line in unused if arguments.rank == 0 else ():
            print(f"vita: {line}", flush=True)
        # the loss is a sum over tokens and is divided by their number once, over all packs of a step
        arguments.calculate_per_token_loss = True
        validate(recipe, arguments.world_size, uneven_pipeline=uneven_pipeline(arguments))
        check_tower(recipe)
        check_pipeline(recipe)
        check_stores(recipe)
        check_replicas(arguments)
        if arguments.lr_warmup_fraction:
            steps = arguments.lr_decay_iters or arguments.train_iters
            # whole steps, as in the built-in engine: Megatron would warm up for part of one
            arguments.lr_warmup_fraction = min(round(arguments.lr_warmup_fraction * steps), steps - 1) / steps


def feature() -> Any:
    """The feature, always on. MindSpeed must have been imported."""
    from mindspeed.features_manager.feature import MindSpeedFeature

    joined = type("VitaFeature", (VitaFeature, MindSpeedFeature), {})
    return joined("vita", optimization_level=0)
