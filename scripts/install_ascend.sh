#!/usr/bin/env bash
# Installs what training on Ascend with MindSpeed-LLM needs, into the Python environment that is active, at pinned versions:
# torch and torch_npu, MindSpeed, MindSpeed-LLM and Megatron-LM as checkouts, this package. Ends with `vita doctor`, whose status it returns.
# The driver, the firmware and CANN need root and a download of your own; they are checked first, and nothing is changed until they are right.
#
# Usage: bash scripts/install_ascend.sh [FOLDER]      FOLDER takes the checkouts and env.sh (default: upstream/ in this repository)
#        DRY_RUN=1 bash scripts/install_ascend.sh     does the checks and prints every step
# Environment: PYTHON (default python3)   ASCEND_ROOT (default /usr/local/Ascend, then ~/Ascend)   TORCH_INDEX (pip index with CPU builds of torch)
#              MEGATRON_URL, MINDSPEED_URL, MINDSPEED_LLM_URL (mirrors)   IN_IMAGE=1 while an image is built: no driver there, so it is not asked for
set -euo pipefail

# The pins; mindspeed_vita/checks/doctor/matrix.py holds the same, and a test compares them.
TORCH=2.7.1 TORCH_NPU=2.7.1.post8 CANN=9.1 DRIVER=25.2 TRANSFORMERS=5.2.0
MEGATRON_REF=core_v0.12.1 MEGATRON_COMMIT=a845aa7e12b3a117e24c2352b9e3e60bad2e3a17
MINDSPEED_REF=26.1.0_core_r0.12.1 MINDSPEED_COMMIT=57a33053c4eccd5b14aa58e3ca595ab414e65b94
MINDSPEED_LLM_REF=26.1.0 MINDSPEED_LLM_COMMIT=ad615b3b343f6305e9a0ce8bcc3ec42052322860
MEGATRON_URL="${MEGATRON_URL:-https://github.com/NVIDIA/Megatron-LM.git}"
MINDSPEED_URL="${MINDSPEED_URL:-https://gitcode.com/Ascend/MindSpeed.git}"
MINDSPEED_LLM_URL="${MINDSPEED_LLM_URL:-https://gitcode.com/Ascend/MindSpeed-LLM.git}"

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
folder="${1:-$root/upstream}"
case "$folder" in /*) ;; *) folder="$PWD/$folder" ;; esac
python="${PYTHON:-python3}"
dry="${DRY_RUN:-0}"
problems=0

ok() { echo "  ok       $1"; }
problem() { # WHAT REMEDY
    problems=$((problems + 1))
    echo "  PROBLEM  $1"
    echo "           remedy: $2"
}
at_least() { [ "$(printf '%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; } # VERSION LOWEST
run() {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    [ "$dry" = 1 ] || "$@"
}

check_machine() {
    local tool driver
    [ "$(uname -s)" = Linux ] || problem "$(uname -s)" "Ascend's driver and CANN run on Linux"
    for tool in git gcc g++ make; do
        command -v "$tool" >/dev/null || problem "$tool is not on PATH" "install it with the system's package manager"
    done
    if [ "${IN_IMAGE:-0}" = 1 ]; then
        echo "  left out driver: it comes from the host when the image runs"
        return
    fi
    if ! driver="$(npu-smi info 2>&1)"; then
        problem "npu-smi info fails: ${driver##*: }" \
            "install driver and firmware $DRIVER or newer (hiascend.com -> firmware and drivers); map npu-smi and /dev/davinci* into a container"
        return
    fi
    driver="$(sed -n 's/.*Version: *\([^ |]*\).*/\1/p' <<<"$driver" | head -n 1)"
    if at_least "$driver" "$DRIVER"; then
        ok "driver $driver"
    else
        problem "driver ${driver:-of unknown version}" "CANN $CANN needs driver and firmware $DRIVER or newer (hiascend.com -> firmware and drivers)"
    fi
}

find_cann() { # prints the folder that holds set_env.sh and <arch>-linux/
    local place home="${ASCEND_ROOT:-/usr/local/Ascend}"
    for place in "${ASCEND_HOME_PATH:-}" "$home"/{cann,ascend-toolkit/latest} ~/Ascend/{cann,ascend-toolkit/latest}; do
        if compgen -G "$place/*-linux/ascend_toolkit_install.info" >/dev/null; then
            echo "$place"
            return
        fi
    done
}

check_cann() {
    local version
    cann="$(find_cann)"
    if [ -z "$cann" ]; then
        problem "CANN was not found (ASCEND_HOME_PATH, ASCEND_ROOT=${ASCEND_ROOT:-/usr/local/Ascend}, ~/Ascend)" \
            "install CANN $CANN.0: toolkit, ops for your NPU, NNAL (hiascend.com -> CANN), or set ASCEND_ROOT"
        return
    fi
    version="$(cat "$cann"/*-linux/ascend_toolkit_install.info | sed -n 's/^version=//p' | head -n 1)"
    case "$version" in
        "$CANN".*) ok "CANN $version in $cann" ;;
        *) problem "CANN ${version:-of unknown version} in $cann" \
            "torch_npu $TORCH_NPU is made for CANN $CANN.0; install that, or set ASCEND_ROOT to where it is" ;;
    esac
}

check_python() {
    local version
    if ! version="$("$python" -c 'import platform; print(platform.python_version())' 2>&1)"; then
        problem "$python does not run" "activate an environment with Python 3.10 or 3.11, or set PYTHON"
        return
    fi
    case "$version" in
        3.10.* | 3.11.*) ok "Python $version" ;;
        *) problem "Python $version" "make an environment with Python 3.10: conda create -n vita python=3.10 && conda activate vita" ;;
    esac
    "$python" -m pip --version >/dev/null 2>&1 || problem "$python has no pip" "$python -m ensurepip"
    version="$("$python" -c 'import importlib.metadata as m; print(m.version("torch"), m.version("torch_npu"))' 2>/dev/null)" || version="none yet"
    echo "           torch and torch_npu there: $version; wanted: $TORCH $TORCH_NPU"
}

pip_install() { run "$python" -m pip --disable-pip-version-check install "$@"; }

get() { # NAME URL REF COMMIT
    local place="$folder/$1"
    [ -d "$place/.git" ] || run git clone --quiet --config advice.detachedHead=false --branch "$3" "$2" "$place"
    run git -C "$place" checkout --quiet -B "$3" "$4"
}

write_env() {
    echo "+ write $folder/env.sh"
    [ "$dry" = 1 ] || cat >"$folder/env.sh" <<EOF
# Source this before training: CANN, and the three upstream projects on Python's path. Written by scripts/install_ascend.sh.
source "$cann/set_env.sh"
[ ! -f "$(dirname -- "$cann")/nnal/atb/set_env.sh" ] || source "$(dirname -- "$cann")/nnal/atb/set_env.sh"
export PYTHONPATH="$folder/MindSpeed-LLM:$folder/MindSpeed:$folder/Megatron-LM\${PYTHONPATH:+:\$PYTHONPATH}"
export VITA_UPSTREAM="$folder"
EOF
}

echo "== checks"
check_machine
check_cann
check_python
if [ "$problems" -gt 0 ] && [ "$dry" != 1 ]; then
    echo "FAIL: $problems problems; nothing was changed"
    exit 1
fi
echo "== torch and torch_npu"
[ "$(uname -m)" = aarch64 ] || [ -n "${TORCH_INDEX:-}" ] || echo "note: torch_npu wants a CPU build of torch; TORCH_INDEX can name its index"
pip_install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==$TORCH"
pip_install "torch-npu==$TORCH_NPU" pyyaml wheel "setuptools>=70.1,<81"
echo "== upstream projects in $folder"
run mkdir -p "$folder"
get Megatron-LM "$MEGATRON_URL" "$MEGATRON_REF" "$MEGATRON_COMMIT"
get MindSpeed "$MINDSPEED_URL" "$MINDSPEED_REF" "$MINDSPEED_COMMIT"
get MindSpeed-LLM "$MINDSPEED_LLM_URL" "$MINDSPEED_LLM_REF" "$MINDSPEED_LLM_COMMIT"
pip_install -r "$folder/MindSpeed/requirements.txt" -r "$folder/MindSpeed-LLM/requirements.txt" "torch==$TORCH" "transformers==$TRANSFORMERS"
write_env
echo "== this package"
# torch and transformers are pinned above and megatron-core comes from the checkout; the rest of the package's own requirements:
mapfile -t rest < <(sed 's/ *#.*//' "$root/requirements.txt" | grep -vE '^(torch|megatron-core|transformers)[<>=]|^$')
rest+=("fastapi>=0.115" "uvicorn>=0.30" "prometheus-client>=0.20") # setup.py's extra "serve"
pip_install "torch==$TORCH" "transformers==$TRANSFORMERS" "${rest[@]}"
pip_install --no-deps --no-build-isolation -e "$root"
echo "== vita doctor"
if [ "$dry" = 1 ]; then
    echo "+ source $folder/env.sh && $python -m mindspeed_vita.cli.main doctor"
    [ "$problems" -eq 0 ] && echo "PASS: dry run, every check passed" || echo "FAIL: dry run, $problems problems"
    exit $((problems > 0))
fi
set +u # vendors' set_env.sh read variables that may be unset
# shellcheck source=/dev/null
source "$folder/env.sh"
set -u
if [ "${IN_IMAGE:-0}" = 1 ]; then
    "$python" -m mindspeed_vita.cli.main doctor --device npu || echo "the image is built; the rest needs the host's driver: run vita doctor there"
    exit 0
fi
exec "$python" -m mindspeed_vita.cli.main doctor --device npu
