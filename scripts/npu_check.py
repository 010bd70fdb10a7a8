"""Is everything right on this NPU? Run once on new hardware; takes some minutes, one NPU. Not run on Ascend hardware so far.

Versions and operator schemas; attention, RMSNorm, SwiGLU and rotation, forward and backward, against fp64 on the host; the order of the
softmax statistics; the fused merge; rings of 2, 4 and 8 against one device; 20 steps of a tiny model against a CPU's losses; speed
of the head and of each recompute mode.

    python scripts/npu_check.py [--json report.json] [--only blocks,rings]
"""

import sys

from project_environment import packages_needed

with packages_needed():
    from mindspeed_vita.checks.hardware_check.main import main

if __name__ == "__main__":
    sys.exit(main("npu"))
