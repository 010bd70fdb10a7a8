#!/usr/bin/env bash
# Makes .venv in the repository with the versions of scripts/locks, or re-uses the one that is there.
# Run it, or source it: then VITA_PYTHON is the interpreter.
# Environment: VITA_BASE_PYTHON  the Python to build from, and no other (default: the one .venv has, else the first of python3.11, python3.12,
#                                python3.10, python3.13, python3 that runs and is 3.10 to 3.13)
#              VITA_TORCH   version of torch (default: the lock's). 2.13.0+cu130 asks for one build. Without a suffix it is the CPU build
#                           where no NVIDIA GPU is found and the index has one; else what the index has.
#              TORCH_INDEX  a pip index with builds of torch (default: the index that pip is set up with)
#              VITA_VENV    folder of the environment (default .venv)
#              VITA_LOCK    constraints file (default: scripts/locks/py311.txt for Python 3.11, and so on)

VITA_ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
VITA_VENV="${VITA_VENV:-$VITA_ROOT/.venv}"
case "$VITA_VENV" in /*) ;; *) VITA_VENV="$PWD/$VITA_VENV" ;; esac
VITA_PYTHON="$VITA_VENV/bin/python"

_vita_fail() {
    echo "setup: error: $1" >&2
    exit 1
}

_vita_version() { # of an interpreter: 3.11; or what it said, with status 1
    local said
    said="$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>&1)" || {
        printf 'does not run: %s' "${said##*$'\n'}"
        return 1
    }
    printf '%s' "$said"
}

_vita_supported() { case "$1" in 3.10 | 3.11 | 3.12 | 3.13) ;; *) return 1 ;; esac }

# An interpreter counts only if it runs: a pyenv shim exists for versions that are not switched on.
_vita_find_python() { # prints the interpreter, or says what is wrong with status 1
    local candidate version
    if [ -n "${VITA_BASE_PYTHON:-}" ]; then
        version="$(_vita_version "$VITA_BASE_PYTHON")" || { echo "VITA_BASE_PYTHON=$VITA_BASE_PYTHON $version"; return 1; }
        _vita_supported "$version" || { echo "VITA_BASE_PYTHON=$VITA_BASE_PYTHON is Python $version; expected 3.10 to 3.13"; return 1; }
        command -v -- "$VITA_BASE_PYTHON"
        return 0
    fi
    for candidate in python3.11 python3.12 python3.10 python3.13 python3; do
        if version="$(_vita_version "$candidate")" && _vita_supported "$version"; then
            command -v -- "$candidate"
            return 0
        fi
    done
    echo "no Python from 3.10 to 3.13 runs (tried python3.11, python3.12, python3.10, python3.13, python3); install one, or name it in VITA_BASE_PYTHON"
    return 1
}

# Everything that is missing, at once. Nothing is changed before this passes.
_vita_check() { # sets base
    local problems=() modules free
    if ! base="$(_vita_find_python)"; then
        problems+=("$base")
    else
        modules="$("$base" -c 'import importlib.util as u; print(*[m for m in ("venv", "ensurepip", "ssl", "zlib", "_ctypes") if not u.find_spec(m)])')"
        [ -z "$modules" ] || problems+=("$base lacks the modules $modules (Debian, Ubuntu: apt-get install python3-venv; a Python built by hand needs the headers of openssl, zlib and libffi)")
    fi
    free="$(df -Pk -- "$VITA_ROOT" | awk 'NR == 2 { print int($4 / 1024) }')"
    [ -x "$VITA_PYTHON" ] || [ "${free:-0}" -ge 3000 ] || problems+=("$VITA_ROOT has $free MB free; the packages take 3,000 MB with a CPU build of torch, 9,000 MB with a CUDA build")
    [ -w "$VITA_ROOT" ] || problems+=("$VITA_ROOT is not writable")
    [ "${#problems[@]}" -eq 0 ] && return 0
    printf 'setup: error: %s\n' "${problems[@]}" >&2
    echo "setup: nothing was changed" >&2
    exit 1
}

# What the installation depends on.
_vita_wanted_stamp() {
    { cat "$VITA_ROOT"/requirements.txt "$VITA_ROOT"/setup.py "$VITA_ROOT"/scripts/setup_env.sh "$VITA_ROOT"/scripts/locks/*.txt ${VITA_LOCK:+"$VITA_LOCK"}
      echo "$VITA_ROOT|${VITA_TORCH:-}|${TORCH_INDEX:-}"; } | cksum
}

_vita_pip() { # pip's progress stays visible
    "$VITA_PYTHON" -m pip --disable-pip-version-check install --constraint "$VITA_VENV/constraints.txt" "$@" || _vita_fail \
        "pip could not install: $*. Its message is above. Check that pip reaches its package index (pip config list, proxy settings) and that the disk is not full, then run this again."
}

_vita_plan() { # WHAT PIP-ARGUMENTS: says how much pip will download; status 1 where pip finds no such set
    local what="$1"
    shift
    "$VITA_PYTHON" -m pip --disable-pip-version-check install --quiet --dry-run --report "$VITA_VENV/report.json" \
        --constraint "$VITA_VENV/constraints.txt" "$@" >"$VITA_VENV/plan.log" 2>&1 || return 1
    echo "setup: installing $what: $("$VITA_PYTHON" "$VITA_ROOT/scripts/locks/report.py" size "$VITA_VENV/report.json")"
}

_vita_install_torch() {
    local index=(${TORCH_INDEX:+--index-url "$TORCH_INDEX"}) wanted="torch==$1"
    # First and with an exact version: left to the others' ranges, pip would take the newest torch there is.
    if [[ "$1" != *+* ]] && ! { [ -e /dev/nvidiactl ] || nvidia-smi -L >/dev/null 2>&1; } && _vita_plan "torch $1+cpu" ${index[@]+"${index[@]}"} "torch==$1+cpu"; then
        wanted="torch==$1+cpu"
    else
        _vita_plan "torch $1" ${index[@]+"${index[@]}"} "$wanted" || echo "setup: installing torch $1"
    fi
    _vita_pip ${index[@]+"${index[@]}"} "$wanted"
}

_vita_make_environment() { # BASE
    local version made
    version="$(_vita_version "$1")"
    # A virtual environment does not survive being moved: its scripts name the old folder. Nor can it change its Python.
    made="$(cat "$VITA_VENV/.vita_root" 2>/dev/null)"
    if [ -n "$made" ] && { [ "$made" != "$VITA_ROOT" ] || [ "$(_vita_version "$VITA_PYTHON")" != "$version" ]; }; then
        rm -rf "$VITA_VENV"
    fi
    if ! "$VITA_PYTHON" -m pip --version >/dev/null 2>&1; then
        echo "setup: making $VITA_VENV with $1 (Python $version)"
        rm -rf "$VITA_VENV"
        "$1" -m venv "$VITA_VENV" || _vita_fail "$1 could not make a virtual environment; on Debian and Ubuntu install python3-venv"
    fi
    printf '%s\n' "$VITA_ROOT" >"$VITA_VENV/.vita_root"
}

_vita_install() {
    local base lock torch version
    # The environment keeps its Python unless VITA_BASE_PYTHON names another.
    if [ -z "${VITA_BASE_PYTHON:-}" ] && version="$(_vita_version "$VITA_PYTHON")" && _vita_supported "$version"; then
        local VITA_BASE_PYTHON="$VITA_PYTHON"
    fi
    _vita_check
    [ "$base" = "$VITA_PYTHON" ] && base="$("$base" -c 'import os, sys; print(os.path.realpath(sys.executable))')"
    _vita_make_environment "$base"
    version="$(_vita_version "$VITA_PYTHON")"
    lock="${VITA_LOCK:-$VITA_ROOT/scripts/locks/py${version/./}.txt}"
    [ -f "$lock" ] || _vita_fail "the lock $lock does not exist; scripts/newest.sh makes it"
    torch="${VITA_TORCH:-$(sed -n 's/^torch==//p' "$lock")}"
    { grep -v '^torch==' "$lock"; echo "torch==$torch"; } >"$VITA_VENV/constraints.txt"
    echo "setup: versions of $lock"
    _vita_install_torch "$torch"
    _vita_pip --quiet setuptools wheel
    _vita_plan "the other packages" --no-build-isolation --editable "${VITA_ROOT}[dev,quickstart]" || echo "setup: installing the other packages"
    _vita_pip --no-build-isolation --editable "${VITA_ROOT}[dev,quickstart]"
}

_vita_setup() {
    local stamp="$VITA_VENV/.vita_stamp" wanted
    wanted="$(_vita_wanted_stamp)"
    if [ -x "$VITA_PYTHON" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && _vita_is_base; then
        return 0
    fi
    rm -f "$stamp"
    _vita_install
    (cd / && "$VITA_PYTHON" -c "import mindspeed_vita") || _vita_fail "the package does not import after its installation; remove $VITA_VENV and run this again"
    printf '%s\n' "$wanted" >"$stamp"
    echo "setup: done ($VITA_VENV)"
}

# Whether the environment was made from VITA_BASE_PYTHON, where that is given.
_vita_is_base() {
    local base
    [ -n "${VITA_BASE_PYTHON:-}" ] || return 0
    base="$(_vita_find_python)" || _vita_fail "$base"
    [ "$(_vita_version "$base")" = "$(_vita_version "$VITA_PYTHON")" ]
}

_vita_setup
