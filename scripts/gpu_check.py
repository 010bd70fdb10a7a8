"""Is everything right on this GPU? Run once on new hardware; takes some minutes, one GPU. Not run on CUDA hardware so far.

Attention by every backend that is installed, forward and backward, against fp64 on the host; rings of 2, 4 and 8 on one GPU, their error
in bf16 next to that of one device's attention; 20 steps of a tiny model against a CPU's losses; attention forward and backward over the
vendor's kernel alone; the head; and a step of a 1.5B language model at 32,768 tokens in each recompute mode, with MFU and peak memory.

    python scripts/gpu_check.py [--json report.json] [--only blocks,rings]
    DEVICE=cpu python scripts/gpu_check.py        the same checks on a CPU, to see that they work
"""

import sys

from project_environment import packages_needed

with packages_needed():
    from mindspeed_vita.checks.hardware_check.main import main

if __name__ == "__main__":
    sys.exit(main("cuda"))
