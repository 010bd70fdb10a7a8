"""Trains Long-VITA with MindSpeed-LLM: `torchrun ... pretrain_vita.py --num-layers 48 ... --vita-data-mixture mixture.yaml`."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import ExitStack

from mindspeed_vita.data import pack_share
from mindspeed_vita.engine.session import first_to_report, rank, stay_for_others, world_size
from mindspeed_vita.engine.stopping import SAVED, Stopped, report_status, saying_where, stop_signals, where_it_continues
from mindspeed_vita.integration.mindspeed_llm.bootstrap import bootstrap
from mindspeed_vita.integration.mindspeed_llm.upstream_errors import arguments_of_upstream


def train() -> int:
    """Runs what sys.argv says, with Megatron's flags.

    Returns:
        Exit status: 0; SAVED where a signal ended the run after a step that was saved.

    Raises:
        ValueError: something is missing, or a flag or setting does not fit.
        Stopped: a signal ended the run at once, or there is nowhere to save.
    """
    platform = bootstrap()
    # upstream modules only from here on
    from megatron.core.enums import ModelType
    from mindspeed_llm.training.training import pretrain

    from mindspeed_vita.integration.mindspeed_llm.run import MindSpeedRun
    from mindspeed_vita.integration.mindspeed_llm.run_watch import RunWatch

    with ExitStack() as blocks:
        stop = blocks.enter_context(stop_signals())
        watch = RunWatch(stop, blocks)
        blocks.enter_context(saying_where(watch.newest))
        run = MindSpeedRun(platform, watch)
        try:
            with arguments_of_upstream():
                pretrain(run.datasets, run.model, ModelType.encoder_or_decoder, run.forward_step)
        except SystemExit as ended:  # a run that ends before its last step, in order
            if ended.code:
                raise
        if not stop.agreed:
            return 0
        saved = watch.newest()
        if saved is None:
            raise Stopped(stop.agreed)
        if rank() == 0:
            print(f"vita: stopped by {signal.Signals(stop.agreed).name}; {where_it_continues(saved)}", file=sys.stderr, flush=True)
        return SAVED


def main() -> int:
    """`train`, with one clear line for a mistake of the user and for a stop, from the first process that meets it."""
    try:
        return train()
    except (ValueError, OSError) as error:
        if os.environ.get("VITA_TRACEBACK"):
            traceback.print_exc()
        return _end(f"pretrain_vita: error: {' '.join(str(error).split())}", 2)
    except Stopped as stopped:
        return _end(f"pretrain_vita: {stopped}", 128 + stopped.number)


def _end(line: str, status: int) -> int:
    if first_to_report():
        print(line, file=sys.stderr, flush=True)
    if world_size() > 1:
        report_status(status)
        pack_share.remove_all()
        stay_for_others()
        sys.stdout.flush()
        os._exit(status)  # leaving in order would wait for processes that are gone
    return status
