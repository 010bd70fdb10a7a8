#!/usr/bin/env bash
# Makes .venv/envs/lmms-eval-0.7.3, an environment with lmms-eval and all it wants (torchvision, opencv, av below 16, torch as the package
# index has it) and this package, for tests/lmms_eval_plugin. About 6.5 GB with a CUDA build of torch. CI does not have it.
# Usage: bash scripts/evaluators_env.sh
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
environment="$VITA_VENV/envs/lmms-eval-0.7.3"
python="$environment/bin/python"
[ ! -x "$environment/bin/lmms-eval" ] || { echo "$environment is there"; exit 0; }
lock="${VITA_LOCK:-$VITA_ROOT/scripts/locks/py$("$VITA_PYTHON" -c 'import sys; print(*sys.version_info[:2], sep="")').txt}"
rm -rf "$environment"
"$VITA_PYTHON" -m venv "$environment"
# what lmms-eval 0.7.3 itself pins or breaks on: protobuf below 7 (wandb), filelock below 4 (it imports filelock._api)
grep -v -E '^(torch|av|protobuf|grpcio|fsspec|click|filelock|setuptools)==' "$lock" >"$environment/constraints.txt"
"$python" -m pip --disable-pip-version-check install --quiet --upgrade pip
"$python" -m pip --disable-pip-version-check install --no-compile --constraint "$environment/constraints.txt" \
    torch==2.14.1 torchvision==0.29.1 lmms-eval==0.7.3 "av<16" "filelock<4" -r "$VITA_ROOT/requirements.txt" "setuptools>=70.1"
"$python" -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation -e "$VITA_ROOT"
echo "$environment"
