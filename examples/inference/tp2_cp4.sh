#!/usr/bin/env bash
# Both: weights over two devices, a film's tokens over four pairs.
# tp 2 cp 4, on NPUs, GPUs or a CPU.
#
#   export CHECKPOINT=... PROMPT="What happens?" VIDEO=film.mp4
#   DRY_RUN=1 bash examples/inference/tp2_cp4.sh      prints the command
#   bash examples/inference/tp2_cp4.sh                answers; the text comes on standard output
#
# Also: IMAGE, DEVICE=auto|npu|cuda|cpu, PYTHON. Arguments go to vita generate (--max-new-tokens 512 --temperature 0.7 --max-frames 4096).
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"

answer 2 4 "$@"
