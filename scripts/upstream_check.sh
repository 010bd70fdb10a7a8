#!/usr/bin/env bash
# Runs everything that needs the real MindSpeed-LLM, over an emulated torch_npu, on a CPU: the patch ledger, the table of flags, the training runs.
# Prints the versions and the whole table of docs/results/mindspeed_llm.md, and ends with one line, PASS or FAIL; the exit status agrees.
#
# Usage: bash scripts/upstream_check.sh FOLDER [pytest arguments]
#        FOLDER holds checkouts MindSpeed-LLM, MindSpeed and Megatron-LM at the commits of scripts/install_ascend.sh
# Environment: VITA_UPSTREAM_PYTHON (interpreter with MindSpeed-LLM's requirements; default: the project's)   VITA_PYTHON (runs the tests; default .venv)
#              VITA_RESULTS (a file that keeps the rows: run the tests in parts, with -k, and the last part prints the table of all)
set -uo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
[ $# -ge 1 ] && [ -d "$1" ] || { echo "FAIL: usage: bash scripts/upstream_check.sh FOLDER [pytest arguments]; FOLDER holds the three checkouts"; exit 2; }
VITA_UPSTREAM="$(cd -- "$1" && pwd)"
shift
python="${VITA_PYTHON:-$root/.venv/bin/python}"
export VITA_UPSTREAM VITA_UPSTREAM_PYTHON="${VITA_UPSTREAM_PYTHON:-$python}" OMP_NUM_THREADS=1
if [ -z "${VITA_RESULTS:-}" ]; then
    VITA_RESULTS="$(mktemp)"
    trap 'rm -f "$VITA_RESULTS"' EXIT
else
    VITA_RESULTS="$(realpath -- "$VITA_RESULTS")"
fi
export VITA_RESULTS
cd -- "$root" || exit 2

echo "== versions"
echo "| project | wanted | found |"
echo "|---|---|---|"
wrong=0
for project in MEGATRON:Megatron-LM MINDSPEED:MindSpeed MINDSPEED_LLM:MindSpeed-LLM; do
    wanted="$(sed -n "s/.*\b${project%%:*}_COMMIT=\([0-9a-f]*\).*/\1/p" scripts/install_ascend.sh)"
    found="$(git -C "$VITA_UPSTREAM/${project#*:}" rev-parse HEAD 2>/dev/null)"
    [ "$wanted" = "$found" ] || wrong=$((wrong + 1))
    echo "| ${project#*:} | ${wanted:0:12} | ${found:0:12} |"
done
echo "| mindspeed_vita | | $(git rev-parse --short=12 HEAD)$([ -z "$(git status --porcelain)" ] || echo ', with changes') |"
"$VITA_UPSTREAM_PYTHON" -c "
import platform, importlib.metadata as m
print('| beside them | |', 'Python', platform.python_version() + ',', ', '.join(f'{name} {m.version(name)}' for name in ('torch', 'transformers', 'numpy')), '|')"

failed=()
[ "$wrong" -eq 0 ] || failed+=("$wrong checkouts at other commits")
echo "== vita patches verify"
"$python" -m mindspeed_vita.cli.main patches verify --upstream "$VITA_UPSTREAM" | grep -v '^ok'
[ "${PIPESTATUS[0]}" -eq 0 ] || failed+=("vita patches verify")
echo "== tests"
SECONDS=0
"$python" -m pytest -q -rs tests/integration tests/unit/patches/test_verify.py --ignore-glob="*/test_hf_*" "$@" || failed+=("pytest")
echo "== results"
echo "| run | ranks | steps | loss off by |"
echo "|---|---|---|---|"
cat "$VITA_RESULTS"
if [ "${#failed[@]}" -eq 0 ]; then
    echo "PASS: scripts/upstream_check.sh in $SECONDS s"
else
    printf -v list '%s, ' "${failed[@]}"
    echo "FAIL: scripts/upstream_check.sh: ${list%, }"
    exit 1
fi
