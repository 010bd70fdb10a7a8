"""Trains Long-VITA under Megatron's own `pretrain` with MindSpeed's adaptor, on a pair of versions that MindSpeed-LLM has no branch for.

test_next_pair.py starts it. The ledger refuses these versions, as it must. So this script puts the two patches in place by itself, to see
whether they would still do their work, and adds what our functions would need. docs/guides/next_mindspeed_llm.md describes each addition.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import Any

from mindspeed_vita.platform import get_platform


def next_groups_wrapper(original: Any) -> Any:
    """Our parameter groups, and in each whether it is the default one, whose rate training_log() prints."""
    from mindspeed_vita.integration.mindspeed_llm.patches import parameter_groups_wrapper

    ours = parameter_groups_wrapper(original)

    def wrapper(*arguments: Any, **named: Any) -> Any:
        groups = ours(*arguments, **named)
        highest = max(group["max_lr"] for group in groups)
        return [{**group, "default_config": group["max_lr"] == highest} for group in groups]

    return wrapper


def enter() -> None:
    """The bootstrap, without MindSpeed-LLM, the checks of the ledger, and the table of flags, which belongs to MindSpeed-LLM."""
    import mindspeed.megatron_adaptor  # noqa: F401 - patches megatron, so it comes before anything of it
    from mindspeed.features_manager.features_manager import MindSpeedFeaturesManager
    from mindspeed.patch_utils import MindSpeedPatchesManager

    from mindspeed_vita.integration.mindspeed_llm import feature
    from mindspeed_vita.integration.mindspeed_llm.step import train_step_wrapper

    feature.check_arguments = lambda *arguments: []
    MindSpeedFeaturesManager.FEATURES_LIST.insert(0, feature.feature())
    MindSpeedPatchesManager.register_patch("megatron.core.optimizer._get_param_groups", next_groups_wrapper)
    MindSpeedPatchesManager.register_patch("megatron.training.training.train_step", train_step_wrapper)
    MindSpeedPatchesManager.apply_patches()


def main() -> None:
    """Trains what sys.argv says."""
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    platform = get_platform("npu")
    enter()
    import torch
    from megatron.core.enums import ModelType
    from megatron.training import pretrain

    from mindspeed_vita.engine.stopping import StopRequest
    from mindspeed_vita.integration.mindspeed_llm.run import MindSpeedRun
    from mindspeed_vita.integration.mindspeed_llm.run_watch import RunWatch
    from mindspeed_vita.integration.mindspeed_llm.step import ForwardStep

    class NextForwardStep(ForwardStep):
        """What the loss function gives from core 0.14 on: the divisor is summed over dp x cp, not dp alone, and a report is one tensor."""

        def _loss(self, inputs: Any, losses_T: Any) -> Any:
            total, count, report = super()._loss(inputs, losses_T)
            mine = count if self.layout.cp_rank == 0 else count.new_zeros(())
            return total, mine, {name: torch.stack([part.float() for part in pair]) for name, pair in report.items()}

    with ExitStack() as blocks:
        watch = RunWatch(StopRequest(), blocks)
        run = MindSpeedRun(platform, watch)
        run.forward_step = NextForwardStep(platform, watch)

        def model(pre_process: bool = True, post_process: bool = True, *, pg_collection: Any, **unused: Any) -> Any:
            built = run.model(pre_process, post_process)
            built.pg_collection = pg_collection  # train() asks the model for its groups
            return built

        pretrain(run.datasets, model, ModelType.encoder_or_decoder, run.forward_step)


if __name__ == "__main__":
    sys.exit(main())
