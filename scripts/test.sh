#!/usr/bin/env bash
# The tests: set-up, static checks, pytest, then the quickstart in its smoke form. Ends with one line, PASS or FAIL; the exit status agrees.
# Usage: bash scripts/test.sh                      everything
#        bash scripts/test.sh [pytest arguments]   pytest with these arguments in place of all tests
set -uo pipefail
trap 'echo "FAIL: scripts/test.sh: the set-up failed, see its message above"' EXIT
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
trap - EXIT
cd -- "$VITA_ROOT" || exit 1
# One thread a process: the multi-process tests would otherwise fight for the cores.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1

# The older supported line of megatron-core lies in a folder of its own; the tests put it first on a worker's path.
export VITA_MCORE_012="${VITA_MCORE_012:-$VITA_VENV/overlays/megatron-core-0.12.3}"
if [ ! -d "$VITA_MCORE_012/megatron/core" ]; then
    "$VITA_PYTHON" -m pip --disable-pip-version-check install --quiet --no-deps --only-binary=:all: --target "$VITA_MCORE_012" "megatron-core==0.12.3" \
        || { echo "tests: megatron-core 0.12.3 could not be installed (0.12.3 has wheels for Python 3.10 and 3.11); the tests on it are skipped"; unset VITA_MCORE_012; }
fi

# And the newest supported line, which wants Python 3.12.
if "$VITA_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then
    export VITA_MCORE_NEWEST="${VITA_MCORE_NEWEST:-$VITA_VENV/overlays/megatron-core-0.19.2}"
    if [ ! -d "$VITA_MCORE_NEWEST/megatron/core" ]; then
        "$VITA_PYTHON" -m pip --disable-pip-version-check install --quiet --no-deps --only-binary=:all: --target "$VITA_MCORE_NEWEST" "megatron-core==0.19.2" \
            || { echo "tests: megatron-core 0.19.2 could not be installed; the tests on it are skipped"; unset VITA_MCORE_NEWEST; }
    fi
else
    echo "tests: megatron-core 0.19 wants Python 3.12; the tests on it are skipped"
fi

# So does torch_npu, for the tests on a simulated Ascend: where it lies beside torch, even `import torch` wants CANN.
torch_version="$("$VITA_PYTHON" -c 'from importlib.metadata import version; print(version("torch").split("+")[0])')"
export VITA_TORCH_NPU="${VITA_TORCH_NPU:-$VITA_VENV/overlays/torch-npu-$torch_version}"
if [ ! -d "$VITA_TORCH_NPU/torch_npu" ]; then
    "$VITA_PYTHON" -m pip --disable-pip-version-check install --quiet --no-deps --only-binary=:all: --target "$VITA_TORCH_NPU" "torch-npu==$torch_version" \
        || { echo "tests: torch_npu $torch_version could not be installed; the tests on a simulated Ascend are skipped"; unset VITA_TORCH_NPU; }
fi

# And the oldest supported line of transformers, without torch; scripts/hf_matrix.sh goes over the lines between it and the installed one.
"$VITA_PYTHON" -m tests.hf_matrix.overlays --oldest >/dev/null \
    || echo "tests: the oldest line of transformers could not be installed; the tests of exported models under it are skipped"
# The engine on transformers' Trainer. DeepSpeed has no wheel; its source package takes the torch that is here.
if ! "$VITA_PYTHON" -c 'import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, ("deepspeed", "accelerate"))))'; then
    "$VITA_PYTHON" -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation \
        "accelerate==1.15.0" "deepspeed==0.19.8" hjson ninja py-cpuinfo msgpack psutil einops \
        || echo "tests: deepspeed 0.19.8 could not be installed; the tests of --engine hf are skipped"
fi
# Object stores: s3fs, and a local server with the interface of S3. Their packages would move others' versions, so they lie apart.
export VITA_STORES="${VITA_STORES:-$VITA_VENV/overlays/stores}"
if [ ! -d "$VITA_STORES/moto" ] || [ ! -d "$VITA_STORES/s3fs" ]; then
    "$VITA_PYTHON" -m pip --disable-pip-version-check install --quiet --only-binary=:all: --target "$VITA_STORES" \
        "s3fs==2026.9.0" "moto==5.2.5" flask flask-cors \
        || { echo "tests: s3fs and moto could not be installed; the test on a local S3 server is skipped"; unset VITA_STORES; }
fi
# A second release of Pillow, of the line that Long-VITA was trained with: our pixels are the same under both.
export VITA_OTHER_PILLOW="${VITA_OTHER_PILLOW:-$VITA_VENV/overlays/pillow-11.3.0}"
if [ ! -d "$VITA_OTHER_PILLOW/PIL" ]; then
    "$VITA_PYTHON" -m pip --disable-pip-version-check install --quiet --no-deps --only-binary=:all: --target "$VITA_OTHER_PILLOW" "pillow==11.3.0" \
        || { echo "tests: pillow 11.3.0 could not be installed; the test of our pixels on it is skipped"; unset VITA_OTHER_PILLOW; }
fi

failed=()
times=()
step() {
    local name="$1" start="$SECONDS"
    shift
    echo "== $name"
    "$@" || failed+=("$name")
    times+=("$(printf '%4d s  %s' "$((SECONDS - start))" "$name")")
}

SECONDS=0
step "ruff" "$VITA_PYTHON" -m ruff check .
step "mypy" "$VITA_PYTHON" -m mypy
if [ $# -gt 0 ]; then
    step "pytest $*" "$VITA_PYTHON" -m pytest -q "$@"
else
    # The unit tests are single processes, so one per core runs at a time. The other tests start several processes each, which wait for
    # one another for a third of the time: two files of them run side by side.
    step "pytest tests/unit" "$VITA_PYTHON" -m pytest -q -n "${VITA_TEST_PROCESSES:-2}" --dist loadfile tests/unit
    step "pytest, the other tests" "$VITA_PYTHON" -m pytest -q -n "${VITA_TEST_PROCESSES:-2}" --dist loadfile tests --ignore tests/unit
fi
step "quickstart --smoke" bash scripts/quickstart.sh --smoke

printf '%s\n' "${times[@]}"
if [ "${#failed[@]}" -eq 0 ]; then
    echo "PASS: scripts/test.sh (ruff, mypy, pytest, quickstart --smoke) in ${SECONDS} s"
else
    printf -v list '%s, ' "${failed[@]}"
    echo "FAIL: scripts/test.sh: ${list%, } failed, after ${SECONDS} s"
    exit 1
fi
