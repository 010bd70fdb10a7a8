"""Is everything right on this NPU, and how fast is it? One NPU, at most 9 minutes. Not run on Ascend hardware so far.

Versions and operator schemas, the order of the softmax statistics, and the fused merge; then all that gpu_check.py does.

    python scripts/npu_check.py [--out FOLDER] [--json report.json] [--only blocks,rings] [--budget 500] [--devices 8] [--peak-tflops 376]
"""

import sys

from project_environment import packages_needed

with packages_needed():
    from mindspeed_vita.checks.hardware_check.main import main

if __name__ == "__main__":
    sys.exit(main("npu"))
