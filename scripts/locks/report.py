"""Reads the JSON that `pip install --dry-run --report FILE` writes. Standard library only: it runs before anything is installed.

python scripts/locks/report.py size FILE          how much pip will download
python scripts/locks/report.py lock FILE PYTHON   the set as a constraints file, on standard output
"""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional
from urllib.error import URLError

OF_TORCH = re.compile(r"^(nvidia|cuda)-|^triton$")
"""What a CUDA build of torch brings: it pins these itself, and other builds pin others."""


def download_bytes(url: str) -> Optional[int]:
    """Size of a file at an index, or None where the index does not tell."""
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.headers["Content-Length"])
    except (URLError, OSError, TypeError, ValueError):
        return None


def packages(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What pip will install, without this project itself, which is a folder."""
    return [item for item in report["install"] if "dir_info" not in item["download_info"]]


def size(report: dict[str, Any]) -> str:
    """One line: the number of packages and the megabytes that are not yet on this disk."""
    urls = [item["download_info"]["url"] for item in packages(report)]
    files = [url for url in urls if url.startswith(("http://", "https://"))]
    with ThreadPoolExecutor(16) as pool:
        sizes = list(pool.map(download_bytes, files))
    unknown = sizes.count(None)
    total = sum(value for value in sizes if value is not None)
    rest = f", and {unknown} of a size the index does not tell" if unknown else ""
    return f"{len(urls)} packages, {total / 1e6:,.0f} MB to download at most{rest}"


def lock(report: dict[str, Any], python: str) -> str:
    """A constraints file. Local suffixes (torch 2.13.0+cpu) are dropped: which build it is depends on the machine and the index."""
    versions = {}
    for item in packages(report):
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        if not OF_TORCH.match(name):
            versions[name] = item["metadata"]["version"].split("+")[0]
    lines = [f"{name}=={version}" for name, version in sorted(versions.items())]
    return "\n".join([f"# What scripts/setup_env.sh installs with Python {python}. Made by scripts/newest.sh.", *lines, ""])


def main() -> None:
    """Runs one of the two commands."""
    command, path, *rest = sys.argv[1:]
    report = json.loads(Path(path).read_text(encoding="utf-8"))
    if command == "size":
        print(size(report))
    else:
        sys.stdout.write(lock(report, *rest))


if __name__ == "__main__":
    main()
