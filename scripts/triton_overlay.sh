#!/usr/bin/env bash
# Makes .venv/overlays/triton-3.9.0 for tests/unit/ops/test_liger.py: Triton, whose interpreter needs no GPU, and Liger's kernels.
# Nothing else uses it: torch for CPUs has no Triton. About 1 GB; CI does not have it.
# Usage: bash scripts/triton_overlay.sh
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
overlay="$VITA_VENV/overlays/triton-3.9.0"
[ ! -d "$overlay/triton" ] || { echo "$overlay is there"; exit 0; }
rm -rf "$overlay.partial"
"$VITA_PYTHON" -m pip --disable-pip-version-check install --quiet --no-deps --no-compile --only-binary=:all: --target "$overlay.partial" \
    triton==3.9.0 liger-kernel==0.8.5
mv "$overlay.partial" "$overlay"
echo "$overlay"
