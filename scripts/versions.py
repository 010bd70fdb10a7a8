"""Writes the table of tested sets into docs/guides/versions.md, from the file that `vita doctor` reads.

    python scripts/versions.py           # after a change of mindspeed_vita/checks/doctor/tested_sets.json
    python scripts/versions.py --check   # exit status 1 where the page is out of date
"""

from __future__ import annotations

import sys

from pages import ROOT, with_table, write_or_check

sys.path.insert(0, str(ROOT))

from mindspeed_vita.checks.doctor.tested_sets import tested_sets

PAGE = ROOT / "docs" / "guides" / "versions.md"


def table() -> str:
    """The sets in Markdown."""
    rows = ["| Python | torch | megatron-core | torch_npu, simulated | transformers | tests | date |", "|---|---|---|---|---|---|---|"]
    for one in tested_sets():
        cells = (one.python, one.torch, ", ".join(one.cores), one.torch_npu or "-", one.transformers, one.ran, one.date)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, lambda: with_table(PAGE, "versions.py", table()), "versions.py"))
