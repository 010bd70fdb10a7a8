#!/usr/bin/env bash
# The tests on several Pythons, each in an environment of its own (.venvs/py312 and so on), one after the other; then a table.
# Usage: bash scripts/test_pythons.sh [pytest arguments]
# Environment: VITA_PYTHONS  the Pythons (default: those of python3.10 to python3.13 that run), e.g. "python3.12 /opt/py/bin/python3.13"
# The environments are kept: a second run installs nothing. Each takes 3 GB, with a CUDA build of torch 6 to 9 GB.
set -uo pipefail
root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
cd -- "$root" || exit 1
mkdir -p .venvs
if [ -z "${VITA_PYTHONS:-}" ]; then
    for candidate in python3.10 python3.11 python3.12 python3.13; do
        "$candidate" -c "" >/dev/null 2>&1 && VITA_PYTHONS="${VITA_PYTHONS:-} $candidate"
    done
fi
[ -n "${VITA_PYTHONS:-}" ] || { echo "FAIL: no Python from 3.10 to 3.13 runs; name some in VITA_PYTHONS"; exit 1; }
rows=() failed=0
for python in $VITA_PYTHONS; do
    version="$("$python" -c 'import platform; print(platform.python_version())')" || { rows+=("$python | - | - | - | does not run"); failed=1; continue; }
    tag="py$(cut -d. -f1,2 <<<"$version" | tr -d .)"
    log=".venvs/$tag.log"
    export VITA_BASE_PYTHON="$python" VITA_VENV="$root/.venvs/$tag"
    echo "== Python $version ($log)"
    SECONDS=0
    bash scripts/setup_env.sh >"$log" 2>&1 || { rows+=("$version | - | - | - | the set-up failed, see $log"); failed=1; continue; }
    setup=$SECONDS SECONDS=0
    if bash scripts/test.sh "$@" >>"$log" 2>&1; then result=passed; else result="FAILED, see $log" failed=1; fi
    counts="$(grep -aE '^[0-9]+ (passed|failed)' "$log" | tail -n 1)"
    rows+=("$version | $((setup / 60)) min $((setup % 60)) s | $((SECONDS / 60)) min $((SECONDS % 60)) s | ${counts%% in *} | $result")
done
echo "| Python | set-up | scripts/test.sh | pytest | result |"
echo "|---|---|---|---|---|"
printf '| %s |\n' "${rows[@]}"
if [ "$failed" = 1 ]; then
    echo "FAIL: scripts/test_pythons.sh"
    exit 1
fi
echo "PASS: scripts/test_pythons.sh"
