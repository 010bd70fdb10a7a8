"""Resolves every package that the RUN lines of docker/ ask for, without building an image, and prints one table.

    python scripts/image_packages.py [--upstream FOLDER] [--torch-index URL] [--output docs/results/images.md]

Python packages are resolved by uv (pip install uv) for the image's Python and both kinds of processor, whatever this machine is.
System packages are looked up in the archive of this machine's own apt, whose release the table names.
Exit status: 1 where something cannot be resolved, 2 where uv or apt is missing. What was not looked up says why, and does not count.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from project_environment import packages_needed

with packages_needed():
    from packaging.requirements import Requirement

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROCESSORS = ("x86_64", "aarch64")
_UBUNTU_2204 = "manylinux_2_35"
"""What wheels for Ubuntu 22.04 may be built for: its glibc is 2.35."""
_PYTHON = {"Dockerfile": ("3.10",), "Dockerfile.ascend": ("3.10", "3.11")}
"""That of ubuntu:22.04; those that scripts/install_ascend.sh takes."""
_EXTRAS = ("dev", "quickstart")
"""Of this package, as scripts/setup_env.sh installs it."""


@dataclass(frozen=True)
class Row:
    """What became of one step of an image."""

    image: str
    step: str
    on: str
    result: str
    failed: bool = False


def run_lines(text: str) -> list[str]:
    """Arguments of the RUN instructions of a Dockerfile, comments left out and lines joined."""
    joined = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    return [line.split(None, 1)[1] for line in joined.splitlines() if line.startswith("RUN ")]


def system_packages(run: str, manager: str) -> list[str]:
    """Names that `apt-get install` or `yum install` is given in a RUN line; empty where it is not called."""
    found: list[str] = []
    for command in re.split(r"&&|;|\bthen\b|\belse\b", run):
        words = shlex.split(command)
        if manager in words and "install" in words:
            found += [word for word in words[words.index("install") + 1 :] if not word.startswith("-")]
    return found


def pip_requirements(printed: str) -> tuple[list[str], list[str]]:
    """What `pip install` lines of a dry run ask for.

    Args:
        printed: lines as "+ python -m pip install ...", as scripts/install_ascend.sh prints them.

    Returns:
        Requirements, without duplicates and without this package itself; files that are given by -r.
    """
    requirements: list[str] = []
    files: list[str] = []
    for line in printed.splitlines():
        words = shlex.split(line[2:]) if line.startswith("+ ") else []
        if words[1:3] != ["-m", "pip"] or "--editable" in words or "-e" in words:
            continue
        rest = iter(words[words.index("install") + 1 :])
        for word in rest:
            if word == "-r":
                files.append(next(rest))
            elif not word.startswith("-"):
                requirements.append(word)
    return list(dict.fromkeys(requirements)), files


def own_requirements(extras: Sequence[str]) -> list[str]:
    """What this package, as it is installed here, asks for with some extras. Markers on the machine stay."""
    found = []
    for text in importlib.metadata.requires("mindspeed_vita") or []:
        requirement = Requirement(text)
        of_extra = re.search(r"""extra == ["']([\w-]+)["']""", text)
        if of_extra is None or of_extra[1] in extras:
            marker = re.sub(r"""\s*(and )?extra == ["'][\w-]+["']""", "", str(requirement.marker or "")).strip()
            requirement.marker = None
            found.append(f"{requirement}; {marker}" if marker else str(requirement))
    return found


def resolve(uv: str, requirements: Sequence[str], python: str, processor: str, *, tag: str, more: Sequence[str] = ()) -> tuple[str, bool]:
    """Has uv find a set of versions.

    Args:
        uv: the program.
        requirements: as in a requirements file.
        python: version, such as 3.10.
        processor: x86_64 or aarch64.
        tag: newest manylinux tag that the image's glibc allows.
        more: further arguments.

    Returns:
        A sentence, and whether it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        wanted, lock = Path(folder, "requirements.in"), Path(folder, "pylock.toml")
        wanted.write_text("\n".join(requirements) + "\n")
        command = [uv, "pip", "compile", "--quiet", "--format", "pylock.toml", "--output-file", str(lock), "--python-version", python]
        done = subprocess.run([*command, "--python-platform", f"{processor}-{tag}", *more, str(wanted)], capture_output=True, text=True)
        if done.returncode:
            return " ".join(done.stderr.split()), True
        packages = tomllib.loads(lock.read_text())["packages"]
    built = sorted(f"{package['name']} {package['version']}" for package in packages if not package.get("wheels"))
    named = {package["name"]: package["version"] for package in packages}
    shown = ", ".join(f"{name} {named[name]}" for name in ("torch", "torch-npu", "transformers", "megatron-core") if name in named)
    source = f"; built from source: {', '.join(built)}" if built else "; all are wheels"
    return f"{len(packages)} packages ({shown}){source}", False


def _of_the_system(image: str, run: str) -> Iterator[Row]:
    apt, yum = system_packages(run, "apt-get"), system_packages(run, "yum")
    if apt:
        done = subprocess.run(["apt-get", "install", "--dry-run", "--no-install-recommends", *apt], capture_output=True, text=True)
        release = platform.freedesktop_os_release()
        archive = f"{release.get('ID', 'Linux')} {release.get('VERSION_ID', '')}".strip()
        missing = " ".join(line for line in done.stderr.splitlines() if line.startswith("E:"))
        yield Row(image, f"apt-get install {' '.join(apt)}", archive, missing or "all are in the archive", bool(done.returncode))
    if yum:
        yield Row(image, f"yum install {' '.join(yum)}", "openEuler", "not looked up: no yum here")


def _of_the_set_up(image: str, uv: str) -> Iterator[Row]:
    for python in _PYTHON[image]:
        lock = ROOT / "scripts" / "locks" / f"py{python.replace('.', '')}.txt"
        for processor in PROCESSORS:
            # CUDA builds bring libraries that the lock leaves to torch itself
            result = resolve(uv, own_requirements(_EXTRAS), python, processor, tag=_UBUNTU_2204, more=("--constraint", str(lock)))
            yield Row(image, f"setup_env.sh: [{','.join(_EXTRAS)}] under {lock.name}", f"Python {python}, {processor}", *result)


def _of_the_ascend_set_up(image: str, uv: str, upstream: Optional[Path], torch_index: str) -> Iterator[Row]:
    folder = Path("/upstream")
    environment = {**os.environ, "DRY_RUN": "1", "IN_IMAGE": "1"}
    script = ["bash", str(ROOT / "scripts" / "install_ascend.sh"), str(folder)]
    printed = subprocess.run(script, capture_output=True, text=True, env=environment).stdout
    requirements, files = pip_requirements(printed)
    step = "install_ascend.sh: every pip install"
    if upstream is None:
        yield Row(image, f"install_ascend.sh: {' '.join(files)}", "", "not looked up: --upstream names a folder with the checkouts")
    else:
        step += ", the requirements of MindSpeed and MindSpeed-LLM too"
        requirements += [line for name in files for line in (upstream / Path(name).relative_to(folder)).read_text().splitlines()]
    for python in _PYTHON[image]:
        for processor in PROCESSORS:
            on = f"Python {python}, {processor}"
            if processor == "x86_64" and not torch_index:
                yield Row(image, step, on, "not looked up: torch_npu wants torch+cpu there, which TORCH_INDEX has; --torch-index names it")
                continue
            index = ("--index", torch_index) if torch_index else ()
            yield Row(image, step, on, *resolve(uv, requirements, python, processor, tag=_UBUNTU_2204, more=index))
    for url, commit in re.findall(r"^\+ git clone .* (\S+) \S+\n\+ git -C .* (\w{40})$", printed, flags=re.MULTILINE):
        yield Row(image, f"install_ascend.sh: git clone {url}", commit[:12], "not looked up: a checkout is no package")


def table(rows: Sequence[Row]) -> str:
    """In Markdown."""
    lines = ["| image | step | on | result |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {row.image} | {row.step} | {row.on} | {'FAIL: ' * row.failed}{row.result} |" for row in rows), ""])


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, help="folder with MindSpeed and MindSpeed-LLM, whose requirements are resolved too")
    parser.add_argument("--torch-index", default="", help="index with CPU builds of torch, for x86_64")
    parser.add_argument("--output", type=Path, help="Markdown file to write the table to")
    arguments = parser.parse_args()
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    uv = shutil.which("uv", path=beside)
    if uv is None or shutil.which("apt-get") is None:
        print("error: uv and apt-get are needed (pip install uv; a Debian or Ubuntu machine)", file=sys.stderr)
        return 2
    rows: list[Row] = []
    for image in _PYTHON:
        for run in run_lines((ROOT / "docker" / image).read_text()):
            rows += _of_the_system(image, run)
            if "setup_env.sh" in run:
                rows += _of_the_set_up(image, uv)
            if "install_ascend.sh" in run:
                rows += _of_the_ascend_set_up(image, uv, arguments.upstream, arguments.torch_index)
    print(table(rows))
    if arguments.output:
        given = " ".join(["python scripts/image_packages.py", *(["--upstream FOLDER"] if arguments.upstream else [])])
        arguments.output.write_text(
            f"# The packages of the images\n\nMade by `{given}`. No image was built: no Docker was at hand.\n"
            "Each step of `docker/` that installs packages was resolved instead, for the Python of the image.\n\n" + table(rows)
        )
    failed = [row for row in rows if row.failed]
    left_out = sum("not looked up" in row.result for row in rows)
    print(f"{'FAIL' if failed else 'PASS'}: {len(rows)} steps, {len(failed)} failed, {left_out} not looked up")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
