#!/usr/bin/env bash
# Eight devices share the weights of 14B or 72B: tp 8. Each holds an eighth of every layer and of the cache's heads.
# tp 8 cp 1, on NPUs, GPUs or a CPU.
#
#   export CHECKPOINT=... PROMPT="What happens?" VIDEO=film.mp4
#   DRY_RUN=1 bash examples/inference/tp8.sh      prints the command
#   bash examples/inference/tp8.sh                answers; the text comes on standard output
#
# Also: IMAGE, DEVICE=auto|npu|cuda|cpu, PYTHON. Arguments go to vita generate (--max-new-tokens 512 --temperature 0.7 --max-frames 4096).
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"

answer 8 1 "$@"
