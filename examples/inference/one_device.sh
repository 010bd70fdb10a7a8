#!/usr/bin/env bash
# One device holds the weights and the cache: 7B in bf16 takes 16 GB, and 57 KB of cache a token.
# tp 1 cp 1, on NPUs, GPUs or a CPU.
#
#   export CHECKPOINT=... PROMPT="What happens?" VIDEO=film.mp4
#   DRY_RUN=1 bash examples/inference/one_device.sh      prints the command
#   bash examples/inference/one_device.sh                answers; the text comes on standard output
#
# Also: IMAGE, DEVICE=auto|npu|cuda|cpu, PYTHON. Arguments go to vita generate (--max-new-tokens 512 --temperature 0.7 --max-frames 4096).
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"

answer 1 1 "$@"
