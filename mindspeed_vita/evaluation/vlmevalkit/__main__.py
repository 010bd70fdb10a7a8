"""`python -m mindspeed_vita.evaluation.vlmevalkit CHECKPOINT [options] -- ARGUMENTS`: VLMEvalKit's run.py with our model registered.

VLMEVALKIT in the environment names the checkout. Its --model is long_vita_native.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from functools import partial
from pathlib import Path

from mindspeed_vita.evaluation.vlmevalkit import NAME


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mindspeed_vita.evaluation.vlmevalkit", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("--max-frames", type=int, metavar="N", help="most frames of a video; default: as in training")
    parser.add_argument("--max-new-tokens", type=int, default=1024, metavar="N", help="most tokens of an answer (default 1024)")
    parser.add_argument("--cache-memory", metavar="SIZE", help="memory of the key-value cache, such as 20GB")
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    chosen = parser.parse_args(words[:end])
    checkout = os.environ.get("VLMEVALKIT", "")
    if not Path(checkout, "run.py").is_file():
        parser.error(f"VLMEVALKIT={checkout!r} names no checkout of VLMEvalKit (with run.py); set it in the environment")
    sys.path.insert(0, checkout)
    from vlmeval import config

    from mindspeed_vita.evaluation.vlmevalkit.model import LongVitaNative

    config.supported_VLM[NAME] = partial(
        LongVitaNative,
        model_path=chosen.checkpoint,
        max_num_frame=chosen.max_frames,
        max_new_tokens=chosen.max_new_tokens,
        cache_memory=chosen.cache_memory,
    )
    sys.argv = [str(Path(checkout, "run.py")), *words[end + 1 :]]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    _main()
