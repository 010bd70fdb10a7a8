#!/usr/bin/env bash
# Known faults of the installed packages, by pip-audit in an environment of its own. It asks a public database, so it is no test.
# Usage: bash scripts/audit.sh      The exit status is pip-audit's: 1 if a package has a known fault, or could not be looked up.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
tool="$VITA_VENV/overlays/pip-audit"
[ -x "$tool/bin/pip-audit" ] || { "$VITA_PYTHON" -m venv "$tool" && "$tool/bin/pip" --disable-pip-version-check install --quiet "pip-audit==2.9.0"; }
list="$(mktemp)"
trap 'rm -f "$list"' EXIT
"$VITA_PYTHON" -m pip --disable-pip-version-check list --format=freeze --exclude-editable | sed 's/+[^ ]*$//' | grep -v '^mindspeed' >"$list"
"$tool/bin/pip-audit" --strict --no-deps --disable-pip --requirement "$list"
