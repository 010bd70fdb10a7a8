#!/usr/bin/env bash
# Trains a tiny model as two processes, injects a fault into each start, and looks for lost steps, damaged checkpoints and another curve.
# Ends with a table and one line, PASS or FAIL.
# Usage: bash scripts/soak_train.sh [FAULTS [SECONDS [SEED [SUMS [KINDS]]]]]     default: 1000, no limit, 0, none, all
# SUMS: a JSON file that adds up the tables of several calls, each with a seed of its own; "" is none.
# KINDS: all, local (runs without a store for checkpoints) or store (runs with one, and its faults).
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false DEVICE=cpu
exec "$VITA_PYTHON" -m tests.soak_train "$@"
