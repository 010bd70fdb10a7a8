#!/usr/bin/env bash
# Checkpoints of --ckpt-format torch_dist in the real MindSpeed-LLM, over an emulated torch_npu: saved while steps run, loaded at other layouts.
# megatron.core 0.12.1's writer does not work with the torch of the tests. Makes an environment with torch 2.7.1, which MindSpeed-LLM 26.1.0
# is released for, and runs tests/integration/test_torch_dist.py in it. Where the package index has CUDA builds only, that takes 6 GB.
# Prints rows for docs/results/mindspeed_llm.md, and ends with one line, PASS or FAIL; the exit status agrees.
#
# Usage: bash scripts/torch_dist_check.sh FOLDER ENVIRONMENT [pytest arguments]
#        FOLDER holds checkouts MindSpeed-LLM, MindSpeed and Megatron-LM; ENVIRONMENT is made where it is not there
# Environment: VITA_PYTHON311 (makes the environment; default python3.11)   VITA_PYTHON (runs the tests; default .venv)
set -uo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
[ $# -ge 2 ] && [ -d "$1" ] || { echo "FAIL: usage: bash scripts/torch_dist_check.sh FOLDER ENVIRONMENT [pytest arguments]"; exit 2; }
VITA_UPSTREAM="$(cd -- "$1" && pwd)"
environment="$(realpath -m -- "$2")"
shift 2
export VITA_UPSTREAM VITA_UPSTREAM_PYTHON="$environment/bin/python" OMP_NUM_THREADS=1
VITA_RESULTS="$(mktemp)"
export VITA_RESULTS
trap 'rm -f "$VITA_RESULTS"' EXIT
cd -- "$root" || exit 2

if [ ! -e "$environment/whole" ]; then
    "${VITA_PYTHON311:-python3.11}" -m venv "$environment" &&
        # core 0.12.1 calls functions that numpy 2 and pandas 3 lack
        "$VITA_UPSTREAM_PYTHON" -m pip install -q --no-cache-dir torch==2.7.1 "numpy<2" "pandas<2.3" "setuptools<81" wheel einops scipy \
            sentencepiece regex six pybind11 ninja transformers==5.2.0 datasets "pyarrow<=24" peft tiktoken accelerate pyyaml pillow av \
            safetensors tqdm tomli && touch "$environment/whole"
    [ -e "$environment/whole" ] || { echo "FAIL: the environment could not be made"; exit 1; }
fi
"$VITA_UPSTREAM_PYTHON" -c "import torch, numpy; print('torch', torch.__version__, 'numpy', numpy.__version__)" || { echo "FAIL: torch does not import"; exit 1; }
"${VITA_PYTHON:-$root/.venv/bin/python}" -m pytest -q -rs tests/integration/test_torch_dist.py "$@"
status=$?
cat "$VITA_RESULTS"
[ "$status" -eq 0 ] || { echo "FAIL: scripts/torch_dist_check.sh"; exit 1; }
echo "PASS: scripts/torch_dist_check.sh"
