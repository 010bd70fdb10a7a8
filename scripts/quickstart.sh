#!/usr/bin/env bash
# The whole path on a CPU: data from photos and clips that packages carry, a warm-up and the four stages, export, questions, report.
# Usage: bash scripts/quickstart.sh [--smoke] [--out DIR]      DIR: runs/tiny, with --smoke runs/tiny_smoke
# Ends with one line, PASS or FAIL; the exit status agrees. --smoke takes the same path with fewer steps.
set -uo pipefail

usage="usage: bash scripts/quickstart.sh [--smoke] [--out DIR]"
smoke=0 out="" named=0
while [ $# -gt 0 ]; do
    case "$1" in
        --smoke) smoke=1 ;;
        --out) [ $# -ge 2 ] || { echo "$usage" >&2; exit 2; }; out="$2" named=1; shift ;;
        *) echo "quickstart: unknown argument $1; $usage" >&2; exit 2 ;;
    esac
    shift
done
case "$out" in ""|/*) ;; *) out="$PWD/$out" ;; esac

trap 'echo "FAIL: quickstart: the set-up failed, see its message above"' EXIT
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
trap - EXIT
cd -- "$VITA_ROOT" || exit 1
if [ "$smoke" = 1 ]; then name="quickstart --smoke" out="${out:-runs/tiny_smoke}" size=smoke; else name="quickstart" out="${out:-runs/tiny}" size=full; fi
# Two processes of one thread each: data parallel over the two cores of a small machine.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 DEVICE="${DEVICE:-cpu}" VITA_OUT="$out"

fail() {
    echo "FAIL: $name: $1 (after ${SECONDS} s)"
    exit 1
}

if [ "$smoke" = 1 ]; then # examples/tiny/pipeline.yaml reads these
    export VITA_STEPS_0=30 VITA_STEPS_1=10 VITA_STEPS_2=50 VITA_STEPS_3=8 VITA_STEPS_4=4
fi

SECONDS=0
mkdir -p "$out" || fail "cannot make $out"
# A run starts afresh, but a folder named by --out is emptied only if this script made it.
if [ "$named" = 1 ] && [ ! -e "$out/.vita_quickstart" ]; then
    [ -z "$(ls -A "$out")" ] || fail "$out holds files that the quickstart did not make; choose an empty folder with --out"
    : >"$out/.vita_quickstart"
fi
rm -rf "$out"/data "$out"/stage[0-4] "$out"/pipeline.log "$out"/export "$out"/evaluation.json "$out"/loss.png

echo "== data"
"$VITA_PYTHON" examples/tiny/make_data.py --out "$out/data" --size "$size" || fail "making the data failed"
echo "== train five stages and export (each stage's processes take some seconds to start)"
"$VITA_PYTHON" -m mindspeed_vita.cli.main pipeline examples/tiny/pipeline.yaml 2>&1 | tee "$out/pipeline.log" || fail "a stage failed, see $out/pipeline.log"
echo "== ask"
"$VITA_PYTHON" examples/tiny/evaluate.py --export "$out/export" --data "$out/data" --out "$out/evaluation.json" || fail "asking the export failed"
minutes="$((SECONDS / 60)) min $((SECONDS % 60)) s"
flag=()
[ "$smoke" = 1 ] && flag=(--smoke)
echo "everything lies in $out; $minutes so far"
exec "$VITA_PYTHON" examples/tiny/report.py --run "$out" ${flag[@]+"${flag[@]}"}
