"""Writes docs/mindspeed_llm_flags.md from the table of verdicts.

    python scripts/flags_page.py           # after a change of verdicts.toml
    python scripts/flags_page.py --check   # exit status 1 where the page is out of date
"""

from __future__ import annotations

import sys

from pages import ROOT, write_or_check
from project_environment import packages_needed

with packages_needed():
    from mindspeed_vita.integration.mindspeed_llm.flag_page import page

if __name__ == "__main__":
    sys.exit(write_or_check(ROOT / "docs" / "mindspeed_llm_flags.md", page, "flags_page.py"))
