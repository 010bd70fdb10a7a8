"""`torchrun -m mindspeed_vita.evaluation.lmms_eval --model long_vita ...`: lmms-eval's own command, over a process group of ours."""

from __future__ import annotations

from mindspeed_vita.evaluation.lmms_eval.start import begin_processes

if __name__ == "__main__":
    begin_processes()
    from lmms_eval.__main__ import cli_evaluate

    cli_evaluate()
