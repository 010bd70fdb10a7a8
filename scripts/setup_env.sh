#!/usr/bin/env bash
# Makes .venv in the repository, or re-uses the one that is there. Run it, or source it: then VITA_PYTHON is the interpreter.
# Environment: VITA_TORCH  version of torch to install (default 2.13.0). Which build that is, CPU or accelerator, is up to the index that pip
#              is set up with; an accelerator build is a download of some gigabytes and works on a CPU too.
#              VITA_BASE_PYTHON  the Python to build from (default: the first of python3.11, python3.10, python3 that runs and is 3.10 or 3.11)

VITA_ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
VITA_PYTHON="$VITA_ROOT/.venv/bin/python"

_vita_fail() {
    echo "setup: error: $1" >&2
    exit 1
}

# An interpreter counts only if it runs: a pyenv shim exists for versions that are not switched on.
_vita_find_python() {
    local candidate
    for candidate in ${VITA_BASE_PYTHON:+"$VITA_BASE_PYTHON"} python3.11 python3.10 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' >/dev/null 2>&1; then
            command -v -- "$candidate"
            return 0
        fi
    done
    return 1
}

# What the installation depends on.
_vita_wanted_stamp() {
    { cat "$VITA_ROOT/requirements.txt" "$VITA_ROOT/setup.py" "$VITA_ROOT/scripts/setup_env.sh"; echo "$VITA_ROOT|${VITA_TORCH:-2.13.0}"; } | cksum
}

_vita_pip() {
    "$VITA_PYTHON" -m pip --disable-pip-version-check install --quiet "$@" || _vita_fail \
        "pip could not install: $*. Its message is above. Check that pip reaches its package index (pip config list, proxy settings) and that the disk is not full, then run this again."
}

_vita_install() {
    local base
    command -v gcc >/dev/null 2>&1 || _vita_fail "gcc was not found; install it (Debian, Ubuntu: apt-get install gcc) and run this again"
    base="$(_vita_find_python)" || _vita_fail "no working Python 3.10 or 3.11 was found (tried python3.11, python3.10, python3); install one, or name it in VITA_BASE_PYTHON"
    # A virtual environment does not survive being moved: its scripts name the old folder.
    if [ -e "$VITA_ROOT/.venv/.vita_root" ] && [ "$(cat "$VITA_ROOT/.venv/.vita_root")" != "$VITA_ROOT" ]; then
        rm -rf "$VITA_ROOT/.venv"
    fi
    if ! "$VITA_PYTHON" -m pip --version >/dev/null 2>&1; then
        echo "setup: making .venv with $base ($("$base" --version 2>&1))"
        rm -rf "$VITA_ROOT/.venv"
        "$base" -m venv "$VITA_ROOT/.venv" || _vita_fail "$base could not make a virtual environment; on Debian and Ubuntu install python3-venv"
    fi
    printf '%s\n' "$VITA_ROOT" >"$VITA_ROOT/.venv/.vita_root"
    echo "setup: installing torch ${VITA_TORCH:-2.13.0}"
    # First and with an exact version: left to the others' ranges, pip would take the newest torch there is.
    _vita_pip "torch==${VITA_TORCH:-2.13.0}"
    echo "setup: installing the other packages (a few minutes the first time)"
    _vita_pip "setuptools>=70.1" wheel
    (cd -- "$VITA_ROOT" && _vita_pip --no-build-isolation --editable ".[dev,quickstart]" "torch==${VITA_TORCH:-2.13.0}") || exit 1
}

_vita_setup() {
    local stamp="$VITA_ROOT/.venv/.vita_stamp" wanted
    wanted="$(_vita_wanted_stamp)"
    if [ -x "$VITA_PYTHON" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return 0
    fi
    _vita_install
    "$VITA_PYTHON" -c "import mindspeed_vita" || _vita_fail "the package does not import after its installation; remove .venv and run this again"
    printf '%s\n' "$wanted" >"$stamp"
    echo "setup: done ($VITA_ROOT/.venv)"
}

_vita_setup
