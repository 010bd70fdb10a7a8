#!/usr/bin/env bash
# Loads a server of a tiny model with 32 unlike clients and looks for what is left behind. Ends with one line, PASS or FAIL.
# Usage: bash scripts/soak_server.sh [SECONDS]     default: 180
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false DEVICE=cpu
exec "$VITA_PYTHON" -m tests.soak_server "${1:-180}"
