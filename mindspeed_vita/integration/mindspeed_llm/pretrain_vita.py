"""Trains Long-VITA with MindSpeed-LLM: `torchrun ... pretrain_vita.py --num-layers 48 ... --vita-data-mixture mixture.yaml`."""

from __future__ import annotations

import os
import sys
import traceback

from mindspeed_vita.engine.session import first_to_report, world_size
from mindspeed_vita.integration.mindspeed_llm.bootstrap import bootstrap
from mindspeed_vita.integration.mindspeed_llm.upstream_errors import arguments_of_upstream


def train() -> None:
    """Runs what sys.argv says, with Megatron's flags.

    Raises:
        ValueError: something is missing, or a flag or setting does not fit.
    """
    platform = bootstrap()
    # upstream modules only from here on
    from megatron.core.enums import ModelType
    from mindspeed_llm.training.training import pretrain

    from mindspeed_vita.integration.mindspeed_llm.run import MindSpeedRun

    run = MindSpeedRun(platform)
    with arguments_of_upstream():
        pretrain(run.datasets, run.model, ModelType.encoder_or_decoder, run.forward_step)


def main() -> int:
    """`train`, with one clear line for a mistake of the user, from the first process that meets it."""
    try:
        train()
    except ValueError as error:
        if os.environ.get("VITA_TRACEBACK"):
            traceback.print_exc()
        if first_to_report():
            print(f"pretrain_vita: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        if world_size() > 1:
            sys.stdout.flush()
            os._exit(2)  # leaving in order would wait for processes that are gone
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
