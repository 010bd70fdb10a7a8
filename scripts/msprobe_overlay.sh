#!/usr/bin/env bash
# Makes .venv/overlays/msprobe-26.2.0 for tests/unit/engine/test_module_dump.py: msprobe and what it imports.
# Nothing else uses it. About 150 MB; CI does not have it.
# Usage: bash scripts/msprobe_overlay.sh
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
overlay="$VITA_VENV/overlays/msprobe-26.2.0"
[ ! -d "$overlay/msprobe" ] || { echo "$overlay is there"; exit 0; }
rm -rf "$overlay.partial"
"$VITA_PYTHON" -m pip --disable-pip-version-check install --quiet --no-deps --no-compile --only-binary=:all: --target "$overlay.partial" \
    mindstudio-probe==26.2.0 pandas openpyxl et-xmlfile python-dateutil pytz
mv "$overlay.partial" "$overlay"
echo "$overlay"
