"""The results of scripts/hf_matrix.sh as a table: a row per behaviour, a column per release of transformers.

Usage: python -m tests.hf_matrix.table [--page FILE] FOLDER/RELEASE ...     reads FOLDER/RELEASE.xml, pytest's report in JUnit's form
"""

from __future__ import annotations

import argparse
import xml.etree.ElementTree as ElementTree
from datetime import date
from pathlib import Path
from platform import python_version

import torch

PAGE = """# The exported model under the releases of transformers

Made by `VITA_HF_MATRIX_TABLE=docs/results/transformers.md bash scripts/hf_matrix.sh` on {day}: Python {python}, torch {torch}, on a CPU.
Each cell is the number of tests that passed; a failure would say FAIL. torchvision is not installed, and warnings are errors,
Python's as well as those that transformers logs (the few that transformers causes itself are named in `tests/hf_matrix/conftest.py`).
The exports are tiny and random; they are written under the newest release here and read under all others.

{table}

- transformers 5.4 to 5.12 replace `transformers.AutoImageProcessor` by a placeholder where torchvision is missing, before any folder
  is read. There, use `AutoProcessor.from_pretrained(folder).image_processor`, or import the class from
  `transformers.models.auto.image_processing_auto`, as these tests do.
- transformers 5.4 finds InternVL's image processor only where torchvision is installed, so two cells are skipped there.
- Up to 5.23, transformers begins prefill in chunks at position 0 even on a filled cache. `generate()` of the exported model refuses this.
"""


def read(report: Path) -> dict[str, list[str]]:
    """Outcomes ("pass", "FAIL", "skip") per behaviour: "file: test" without parameters.

    Raises:
        OSError: no report, because pytest did not start.
    """
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        area = case.get("classname", "").rsplit(".", 1)[-1].removeprefix("test_").replace("_", " ")
        name = case.get("name", "").partition("[")[0].removeprefix("test_").replace("_", " ")
        failed = case.find("failure") is not None or case.find("error") is not None
        found.setdefault(f"{area}: {name}", []).append("FAIL" if failed else "skip" if case.find("skipped") is not None else "pass")
    return found


def table(results: dict[str, dict[str, list[str]]]) -> str:
    """The table as Markdown. Tests of test_lines are left out unless one fails: they are about these runs, not about the exports."""
    behaviours = dict.fromkeys(name for result in results.values() for name in result)
    for name in [name for name in behaviours if name.startswith("lines: ")]:
        if not any("FAIL" in result.get(name, []) for result in results.values()):
            del behaviours[name]
    rows = [["behaviour", *results], ["---", *("---" for _ in results)]]
    for name in behaviours:
        rows.append([name, *(_cell(result.get(name, [])) for result in results.values())])
    rows.append(["all", *(_cell([outcome for name in behaviours for outcome in result.get(name, [])]) for result in results.values())])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(outcomes: list[str]) -> str:
    if not outcomes or "FAIL" in outcomes:
        return f"FAIL {outcomes.count('FAIL')} of {len(outcomes)}" if outcomes else "FAIL (did not run)"
    return str(outcomes.count("pass")) if "pass" in outcomes else "skipped"


def main() -> int:
    """Command line; the exit status is 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, help="Markdown page to write")
    parser.add_argument("reports", nargs="+", type=Path, help="reports without .xml; the last part of the path is the release")
    args = parser.parse_args()
    results = {report.name: read(report.with_name(report.name + ".xml")) for report in args.reports}
    text = table(results)
    print(text)
    if args.page:
        page = PAGE.format(day=date.today(), python=python_version(), torch=torch.__version__, table=text)
        args.page.write_text(page, encoding="utf-8")
    return int("FAIL" in text)


if __name__ == "__main__":
    raise SystemExit(main())
