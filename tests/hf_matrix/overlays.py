"""The transformers lines that an export is tried under, and the folder ("overlay") that holds each.

An overlay holds what that transformers needs and this environment has in another version: transformers, tokenizers, huggingface_hub and
what they need. It never holds torch. First on a process's PYTHONPATH, it takes the place of the installed transformers.

Usage: python -m tests.hf_matrix.overlays [release ...]     makes the overlays that are missing and prints their folders
       python -m tests.hf_matrix.overlays --oldest          makes that of the oldest line
       python -m tests.hf_matrix.overlays --lines           prints the lines that need an overlay; --installed the release that needs none
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = ROOT / ".venv" / "overlays"
LINES = ("4.57.6", "5.0.0", "5.4.0", "5.9.0", "5.12.1", "5.18.0", "5.20.2")
"""The lines beside the installed one, by their last release. 5.4 to 5.12 look for torchvision; vLLM 0.33 asks for less than 5.21."""
OLDEST = LINES[0]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")


def installed() -> str:
    """The transformers of this environment: the newest line, which needs no overlay."""
    return version("transformers")


def overlay(line: str) -> Path:
    """Where the overlay of a release is, or would be."""
    return OVERLAYS / f"transformers-{line}"


def is_made(line: str) -> bool:
    """Whether the overlay is complete: its folder appears in one step."""
    return (overlay(line) / "transformers").is_dir()


def make(line: str) -> Path:
    """Make the overlay of a release, unless it is there.

    Raises:
        RuntimeError: pip could not find or install something, or the release wants another torch.
    """
    folder = overlay(line)
    if is_made(line):
        return folder
    pins = _changes(line)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _pip("--no-deps", "--no-compile", "--target", str(partial), *pins)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _changes(line: str) -> list[str]:
    """What pip would install or replace here to bring this transformers in, as exact versions."""
    report = json.loads(_pip("--dry-run", "--report", "-", f"transformers=={line}"))
    pins = sorted(f"{item['metadata']['name']}=={item['metadata']['version']}" for item in report["install"])
    if any(pin.startswith(("torch==", "numpy==")) for pin in pins):
        raise RuntimeError(f"transformers {line} asks for other versions of torch or numpy than the installed ones: {', '.join(pins)}")
    return pins


def _pip(*arguments: str) -> str:
    done = subprocess.run([*PIP, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pip install {' '.join(arguments)} failed:\n{done.stderr.strip()}")
    return done.stdout


def main(lines: list[str]) -> None:
    """Command line."""
    if lines == ["--lines"] or lines == ["--installed"]:
        print(*(LINES if lines == ["--lines"] else [installed()]), sep="\n")
        return
    for line in [OLDEST] if lines == ["--oldest"] else lines or LINES:
        print(make(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
