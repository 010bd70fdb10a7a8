#!/usr/bin/env bash
# Eight devices share a film's tokens: cp 8. Each holds all weights, and an eighth of the cache and of the prompt's work.
# tp 1 cp 8, on NPUs, GPUs or a CPU.
#
#   export CHECKPOINT=... PROMPT="What happens?" VIDEO=film.mp4
#   DRY_RUN=1 bash examples/inference/cp8.sh      prints the command
#   bash examples/inference/cp8.sh                answers; the text comes on standard output
#
# Also: IMAGE, DEVICE=auto|npu|cuda|cpu, PYTHON. Arguments go to vita generate (--max-new-tokens 512 --temperature 0.7 --max-frames 4096).
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"

answer 1 8 "$@"
