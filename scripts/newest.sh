#!/usr/bin/env bash
# Tries the newest versions that requirements.txt and setup.py allow: finds them, installs them in an environment of their own, runs the tests
# there, prints what changed, what breaks, and which newer releases lie outside the ranges. When everything passes, the locks of scripts/locks are renewed.
# Usage: bash scripts/newest.sh [--dry-run]     --dry-run: find and print the versions, install nothing
# Environment: VITA_PYTHONS  the Pythons to try (default: those of python3.10 to python3.13 that run), e.g. "python3.11 /opt/py/bin/python3.12"
#              VITA_TORCH    version of torch (default: the newest in the range of requirements.txt)
#              TORCH_INDEX   as for scripts/setup_env.sh
# Needs some 3 GB for each Python (9 GB with a CUDA build of torch) in .venvs, and about half an hour for each on two cores.
set -uo pipefail
root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
cd -- "$root" || exit 1
dry=0
case "${1:-}" in "") ;; --dry-run) dry=1 ;; *) echo "usage: bash scripts/newest.sh [--dry-run]" >&2; exit 2 ;; esac
mkdir -p .venvs/newest
broken=() renewed=()

find_versions() { # PYTHON TAG VERSION: writes .venvs/newest/TAG.txt
    local folder="$root/.venvs/newest/resolver-$2"
    rm -rf "$folder"
    "$1" -m venv "$folder" || return 1
    "$folder/bin/python" -m pip --disable-pip-version-check install --quiet --upgrade pip || return 1
    "$folder/bin/python" -m pip install --quiet --dry-run --report "$folder/report.json" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        "${root}[dev,quickstart]" "setuptools>=70.1" wheel "torch${VITA_TORCH:+==$VITA_TORCH}" || return 1
    outside "$folder"
    "$folder/bin/python" scripts/locks/report.py lock "$folder/report.json" "$3" >".venvs/newest/$2.txt" || return 1
    rm -rf "$folder"
}

outside() { # RESOLVER: prints the releases that lie outside the ranges of requirements.txt
    local range name newest
    while read -r range; do
        name="${range%%[<>=]*}"
        "$1/bin/python" -m pip install --quiet --dry-run --no-deps --report "$1/one.json" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$name" 2>/dev/null || continue
        newest="$("$1/bin/python" scripts/locks/report.py lock "$1/one.json" "" | sed -n '2s/.*==//p')"
        "$1/bin/python" - "$range" "$newest" <<<'import sys; from pip._vendor.packaging.requirements import Requirement as R; sys.exit(R(sys.argv[1]).specifier.contains(sys.argv[2]))' \
            && echo "  outside the range $range: $name $newest"
    done < <(sed 's/ *[#;].*//' requirements.txt | grep -E '==|<')
}

try() { # PYTHON
    local version tag lock
    version="$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" || { broken+=("$1 does not run"); return; }
    tag="py${version/./}"
    lock=".venvs/newest/$tag.txt"
    echo "== Python $version: the newest versions"
    find_versions "$1" "$tag" "$version" || { broken+=("Python $version: pip finds no set of versions"); return; }
    if diff --unchanged-line-format= --old-line-format='  - %L' --new-line-format='  + %L' "scripts/locks/$tag.txt" "$lock" 2>/dev/null; then
        echo "  nothing is newer than scripts/locks/$tag.txt"
    fi
    [ "$dry" = 0 ] || return
    echo "== Python $version: the tests"
    if VITA_BASE_PYTHON="$1" VITA_VENV="$root/.venvs/newest-$tag" VITA_LOCK="$root/$lock" VITA_TORCH="" bash scripts/test.sh >"$lock.log" 2>&1; then
        renewed+=("$tag")
    else
        grep -aE '^(FAILED|ERROR|FAIL:|setup: error)|error:' "$lock.log" | tail -n 40
        broken+=("Python $version: see $lock.log")
    fi
}

if [ -z "${VITA_PYTHONS:-}" ]; then
    for candidate in python3.10 python3.11 python3.12 python3.13; do
        "$candidate" -c "" >/dev/null 2>&1 && VITA_PYTHONS="${VITA_PYTHONS:-} $candidate"
    done
fi
for python in ${VITA_PYTHONS:-}; do
    try "$python"
done
if [ "${#broken[@]}" -gt 0 ]; then
    printf 'broken: %s\n' "${broken[@]}"
    echo "FAIL: the locks stay as they are. Fix the code, or lower the range in requirements.txt or setup.py and say why, then run this again"
    exit 1
fi
[ "$dry" = 0 ] || exit 0
[ "${#renewed[@]}" -gt 0 ] || { echo "FAIL: no Python from 3.10 to 3.13 runs"; exit 1; }
for tag in "${renewed[@]}"; do
    cp ".venvs/newest/$tag.txt" "scripts/locks/$tag.txt"
done
echo "PASS: renewed ${renewed[*]/#/scripts/locks/}; look at git diff, and commit"
