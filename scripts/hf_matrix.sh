#!/usr/bin/env bash
# The exported model and processor under many releases of transformers: the behaviours of tests/hf_matrix in each, as a table.
# Usage: bash scripts/hf_matrix.sh [release ...]     without releases: the lines of tests/hf_matrix/overlays.py, then the installed one
# Environment: VITA_HF_MATRIX_TABLE  file to write the table to, as a page (default: none; the table is printed either way)
#              VITA_HF_MATRIX_LINES  how many of the last lines of each pytest run are printed (default: 15)
# Each release but the installed one is downloaded once, to .venv/overlays (about 60 MB each; no torch). Exit status: 0 if all pass.
set -uo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
cd -- "$VITA_ROOT" || exit 1
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
installed="$("$VITA_PYTHON" -m tests.hf_matrix.overlays --installed)" || exit 1
if [ "$#" -gt 0 ]; then
    lines=("$@")
else
    mapfile -t lines < <("$VITA_PYTHON" -m tests.hf_matrix.overlays --lines)
    lines+=("$installed")
fi
"$VITA_PYTHON" -m tests.hf_matrix.world "$work/world" 2>"$work/log" || { cat "$work/log"; echo "hf_matrix: error: the exports could not be made"; exit 1; }
for line in "${lines[@]}"; do
    overlay=""
    if [ "$line" != "$installed" ]; then
        overlay="$("$VITA_PYTHON" -m tests.hf_matrix.overlays "$line")" || exit 1
    fi
    echo "== transformers $line"
    PYTHONPATH="$overlay" VITA_HF_MATRIX_WORLD="$work/world" VITA_HF_MATRIX_LINE="$line" \
        "$VITA_PYTHON" -m pytest -q --tb=short -p no:cacheprovider tests/hf_matrix --junitxml="$work/$line.xml" -o junit_logging=no | tail -n "${VITA_HF_MATRIX_LINES:-15}"
done
"$VITA_PYTHON" -m tests.hf_matrix.table ${VITA_HF_MATRIX_TABLE:+--page "$VITA_HF_MATRIX_TABLE"} "${lines[@]/#/$work/}"
