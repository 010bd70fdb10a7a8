"""Writes the table of tested sets into docs/guides/versions.md, from the file that `vita doctor` reads.

    python scripts/versions.py           # after a change of mindspeed_vita/checks/doctor/tested_sets.json
    python scripts/versions.py --check   # exit status 1 where the page is out of date
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mindspeed_vita.checks.doctor.tested_sets import FILE, tested_sets  # noqa: E402

PAGE = ROOT / "docs" / "guides" / "versions.md"
BEGIN, END = "<!-- scripts/versions.py: begin -->", "<!-- scripts/versions.py: end -->"


def table() -> str:
    """The sets in Markdown."""
    rows = ["| Python | torch | megatron-core | torch_npu, simulated | transformers | tests | date |", "|---|---|---|---|---|---|---|"]
    for one in tested_sets():
        cells = (one.python, one.torch, ", ".join(one.cores), one.torch_npu or "-", one.transformers, one.ran, one.date)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def renewed(page: str) -> str:
    """A page with the table of today between its two marks.

    Raises:
        ValueError: the page has no marks.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"{PAGE} lacks the lines {BEGIN} and {END}; put them where the table belongs")
    return pattern.sub(lambda _: f"{BEGIN}\n{table()}\n{END}", page)


def main() -> int:
    """Writes the page, or compares it with --check."""
    page = PAGE.read_text(encoding="utf-8")
    new = renewed(page)
    if sys.argv[1:] == ["--check"]:
        if new != page:
            print(f"{PAGE} does not show what {FILE} holds; run python scripts/versions.py", file=sys.stderr)
        return int(new != page)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
