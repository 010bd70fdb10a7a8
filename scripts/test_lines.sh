#!/usr/bin/env bash
# The core tests on every supported line of megatron-core in turn, then the crossings between the lines; ends with a table in Markdown.
# Usage: bash scripts/test_lines.sh [pytest arguments other than -k]
# Environment: VITA_PYTHON  interpreter of an environment with the package and its dev extra (default .venv/bin/python). megatron-core 0.19
#              needs Python 3.12; on an older one its row says so.
#              VITA_LINES   releases to try (default "0.12.3 0.16.1 0.19.2"), kept in folders of their own under .venvs/overlays
set -uo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit 1
root="$PWD"
python="${VITA_PYTHON:-$root/.venv/bin/python}"
"$python" -c 'import mindspeed_vita, pytest' || { echo "test_lines: $python lacks the package or pytest; source scripts/setup_env.sh, or set VITA_PYTHON"; exit 1; }
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
# The golden curve, optimizer, checkpoints; gradients of every layout; curves, resumes and kills under every layout.
tests=(tests/unit/platform tests/unit/engine tests/unit/checkpoint tests/parity/test_layouts.py tests/distributed/test_layouts.py tests/distributed/test_kill.py)
logs="$(mktemp -d)"
rows=() failed=0

# One row: what ran, pytest's last line. Each line of megatron-core is put in the place of the installed one.
row() {
    local name="$1" log="$logs/$1"
    shift
    echo "== $name"
    "$python" -m pytest -q -p no:cacheprovider "$@" 2>&1 | tee "$log" | tail -n 3
    [ "${PIPESTATUS[0]}" -eq 0 ] || failed=1
    rows+=("| $name | $(tail -n 1 "$log" | tr -d '=' | sed 's/^ *//; s/ *$//') |")
}

folders=()
for release in ${VITA_LINES:-0.12.3 0.16.1 0.19.2}; do
    folder="$root/.venvs/overlays/$version/megatron-core-$release"
    if [ ! -d "$folder/megatron/core" ] && ! "$python" -m pip --disable-pip-version-check install --quiet --no-deps --target "$folder" "megatron-core==$release"; then
        rows+=("| megatron-core $release | not tested: pip found none for Python $version |")
        continue
    fi
    folders+=("$release=$folder")
    PYTHONPATH="$folder" row "megatron-core $release" "${tests[@]}" -k "not 0.12 and not newest" "$@"
done

for entry in "${folders[@]}"; do
    case "${entry%%=*}" in
        0.12.*) export VITA_MCORE_012="${entry#*=}" ;;
        0.19.*) export VITA_MCORE_NEWEST="${entry#*=}" ;;
        0.16.*) middle="${entry#*=}" ;;
    esac
done
PYTHONPATH="${middle:-}" row "crossings between lines" tests/distributed/test_layouts.py -k "cross or another_core_line or named_after"

echo
"$python" -c 'from importlib.metadata import version as v; import sys; print("Python", sys.version.split()[0] + ", torch", v("torch") + ", transformers", v("transformers") + ", numpy", v("numpy"))'
echo
echo "| | outcome |"
echo "|---|---|"
printf '%s\n' "${rows[@]}"
if [ "$failed" -eq 0 ]; then echo "PASS: scripts/test_lines.sh in ${SECONDS} s"; else echo "FAIL: scripts/test_lines.sh in ${SECONDS} s, logs in $logs"; fi
exit "$failed"
