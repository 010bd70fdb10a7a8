"""Is everything right on this GPU, and how fast is it? One GPU, at most 9 minutes. Not run on CUDA hardware so far.

First what is right: attention by every backend that is installed, forward and backward, against fp64 on the host; norm, gate, rotation
and row losses; 20 steps of a tiny model against a CPU's losses; rings of 2, 4 and 8 on one GPU, their error in bf16 next to that of one
device's attention; cached keys; tiles. Then what it costs: attention over the vendor's kernel alone; a step of a 1.5B language model at
32,768 tokens in each recompute mode, with MFU and peak memory; prefill and decode; a step with the tower for `vita plan --calibrate`;
the head; the tower; fused kernels over plain torch; and, on more than one device, how much of a ring's transfers is hidden.
A section that would not end in time is skipped and named. --out writes report.md, report.json and the planner's files.

    python scripts/gpu_check.py [--out FOLDER] [--json report.json] [--only blocks,rings] [--budget 500] [--devices 8]
    DEVICE=cpu python scripts/gpu_check.py --devices 2       the same checks on a CPU, to see that they work
"""

import sys

from project_environment import packages_needed

with packages_needed():
    from mindspeed_vita.checks.hardware_check.main import main

if __name__ == "__main__":
    sys.exit(main("cuda"))
