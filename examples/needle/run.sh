#!/usr/bin/env bash
# A tiny model learns to find a needle in up to 64 frames, and is asked up to 256: rows, tokenizer, two stages, export, grid, gate.
# Usage: bash examples/needle/run.sh [--out DIR]      DIR: runs/needle
# The exit status is that of the gate: 0 if at least 95% are right at each length up to 64 frames, and blanked needles are at chance.
set -euo pipefail

usage="usage: bash examples/needle/run.sh [--out DIR]"
out=runs/needle
while [ $# -gt 0 ]; do
    case "$1" in
        --out) [ $# -ge 2 ] || { echo "$usage" >&2; exit 2; }; out="$2"; shift ;;
        *) echo "needle: unknown argument $1; $usage" >&2; exit 2 ;;
    esac
    shift
done
case "$out" in /*) ;; *) out="$PWD/$out" ;; esac
[ ! -e "$out" ] || { echo "needle: $out is there already; remove it, or choose another folder with --out" >&2; exit 2; }

source "$(dirname -- "${BASH_SOURCE[0]}")/../../scripts/setup_env.sh"
cd -- "$VITA_ROOT"
# Two processes of one thread each: data parallel over the two cores of a small machine.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 DEVICE="${DEVICE:-cpu}" VITA_OUT="$out"
vita() { "$VITA_PYTHON" -m mindspeed_vita.cli.main "$@"; }
needles=(--tasks colour --wall black --distractor-every 4)

vita eval needle --make-data "$out/short" --lengths 1,2,4,8 --rows 10000 --side 56 --pool 256 --seed 1 "${needles[@]}"
vita eval needle --make-data "$out/long" --lengths 8,16,32,48,64 --rows 1200 --side 56 --seed 3 "${needles[@]}"
"$VITA_PYTHON" examples/needle/make_tokenizer.py --rows "$out/short/rows.jsonl" --out "$out/tokenizer"
for stage in short long; do
    "$VITA_PYTHON" -m torch.distributed.run --standalone --nproc_per_node "${VITA_PROCESSES:-2}" -m mindspeed_vita.cli.main \
        train "examples/needle/$stage.yaml"
done
vita convert --from "$out/stage_long" --to hf --dtype bf16 --tokenizer "$out/tokenizer" --output "$out/export"
vita eval needle "$out/export" --lengths 4,8,16,32,64,128,256 --depths 5 --samples 6 "${needles[@]}" --control \
    --output "$out/eval" --pass 0.95 --up-to 64
