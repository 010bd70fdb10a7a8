"""Says what of the public training data is in place below DATA_ROOT, what is missing, and where it comes from.

A look at files and at the first rows of each; `vita data check RECIPE` then reads every row.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))
from project_environment import packages_needed

with packages_needed():
    import yaml

    from mindspeed_vita.data.media.paths import MediaError, resolve

HERE = Path(__file__).resolve().parent
SHOWN = 3
"""Missing things of one kind that are named; the rest are counted."""


@dataclass
class Source:
    """What was found of one entry of a mixture."""

    name: str
    files: int = 0
    media: int = 0
    """Pictures and videos that the rows looked at name."""
    missing_files: list[str] = field(default_factory=list)
    missing_media: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Nothing is missing, as far as was looked."""
        return not (self.missing_files or self.missing_media or self.unreadable)


def look(stage: int, root: Path, rows: int) -> list[Source]:
    """What is there of a stage's mixture.

    Args:
        stage: 1 to 4.
        root: DATA_ROOT.
        rows: rows of each file whose pictures and videos are looked for.
    """
    found = []
    for name, entry in yaml.safe_load((HERE / f"stage{stage}.yaml").read_text(encoding="utf-8"))["dataset"].items():
        if entry["ratio"] == 0:
            continue
        source = Source(name)
        for path in entry["data_paths"]:
            _look_at_file(source, Path(path.replace("${DATA_ROOT}", str(root))), root, rows)
        found.append(source)
    return found


def _look_at_file(source: Source, file: Path, root: Path, rows: int) -> None:
    source.files += 1
    if not file.is_file():
        source.missing_files.append(str(file.relative_to(root)))
        return
    try:
        for row in islice(_rows(file), rows):
            for medium in [*(row.get("images") or []), *(row.get("videos") or [])]:
                source.media += 1
                try:
                    resolve(str(medium), str(root))
                except MediaError as error:
                    source.missing_media.append(f"{error.path}: {error.reason}")
    except (ValueError, AttributeError) as error:
        source.unreadable.append(f"{file.relative_to(root)}: {error}")


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        first = lines.read(1)
        lines.seek(0)
        if first == "[":
            yield from json.load(lines)
        else:
            yield from (json.loads(line) for line in lines if line.strip())


def home(name: str, homes: dict[str, list[str]]) -> str:
    """Where a source's media come from; the parts of LLaVA-Video-178K share one entry."""
    return " ".join(next(urls for key, urls in homes.items() if name == key or name.startswith(f"{key}_")))


def report(sources: list[Source], homes: dict[str, Any]) -> Iterator[str]:
    """Lines for people."""
    for source in sources:
        missing = len(source.missing_files), len(source.missing_media)
        state = "ok     " if source.complete else "MISSING"
        yield f"  {state} {source.name}: {source.files - missing[0]} of {source.files} files, {missing[1]} of {source.media} media missing"
        for what, items in (("file", source.missing_files), ("medium", source.missing_media), ("unreadable", source.unreadable)):
            yield from (f"            {what} {item}" for item in items[:SHOWN])
            if len(items) > SHOWN:
                yield f"            and {len(items) - SHOWN} more"
        if source.missing_files:
            yield f"            conversations: {homes['jsonl']}"
        if source.missing_media:
            yield f"            media: {home(source.name, homes['media'])}"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = os.environ.get("DATA_ROOT") or None
    parser.add_argument("--data-root", type=Path, default=root, help="folder that holds datasets/ (default: DATA_ROOT)")
    parser.add_argument("--stage", type=int, nargs="*", choices=(1, 2, 3, 4), default=(1, 2, 3, 4), help="stages to look at (default: all)")
    parser.add_argument("--rows", type=int, default=100, help="rows of each file whose media are looked for (default 100)")
    arguments = parser.parse_args()
    if arguments.data_root is None or not Path(arguments.data_root).is_dir():
        parser.error(f"--data-root {arguments.data_root}: no such folder; give the one that holds datasets/, or set DATA_ROOT")
    homes = yaml.safe_load((HERE / "homes.yaml").read_text(encoding="utf-8"))
    complete = True
    for stage in arguments.stage:
        sources = look(stage, Path(arguments.data_root).resolve(), arguments.rows)
        done = sum(source.complete for source in sources)
        complete = complete and done == len(sources)
        print(f"stage {stage}: {done} of {len(sources)} sources complete")
        print("\n".join(report(sources, homes)))
    print("PASS: everything that was looked at is there" if complete else "FAIL: something is missing")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
