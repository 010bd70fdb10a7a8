"""Writes docs/mindspeed_llm_flags.md from the table of verdicts.

    python scripts/flags_page.py           # after a change of verdicts.toml
    python scripts/flags_page.py --check   # exit status 1 where the page is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

try:
    from mindspeed_vita.integration.mindspeed_llm.flag_page import page
except ModuleNotFoundError as error:
    sys.exit(f"{sys.argv[0]}: {error.name} is missing in {sys.executable}; run: source .venv/bin/activate (scripts/setup_env.sh makes it)")

PAGE = Path(__file__).resolve().parents[1] / "docs" / "mindspeed_llm_flags.md"


def main() -> int:
    """Writes the page, or compares it with --check."""
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page()
    if not current:
        print(f"{PAGE} is out of date; run python scripts/flags_page.py", file=sys.stderr)
    return int(not current)


if __name__ == "__main__":
    sys.exit(main())
