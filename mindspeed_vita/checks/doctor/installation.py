"""What is installed here, found without importing torch or any framework: on a broken Ascend node those imports are what fails."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from mindspeed_vita.checks.doctor.matrix import ASCEND, FLASH_ATTN, PACKAGES, VIDEO_CODECS
from mindspeed_vita.choices import VIDEO_READERS

_DRIVER_INFO = "/usr/local/Ascend/driver/version.info"  # where Ascend's driver always writes it
_OPTIONAL = ("torch_npu", FLASH_ATTN.name, *VIDEO_READERS[1:], "triton", "triton-ascend")


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A device as its vendor's tool lists it."""

    name: str
    memory_gib: float
    healthy: bool = True


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """An upstream project on the path."""

    folder: str
    ref: Optional[str] = None
    """Branch or tag, if git knows one."""
    commit: Optional[str] = None


@dataclass(frozen=True, kw_only=True)
class Installation:
    """Versions and places; None where a thing is absent."""

    python: str
    packages: Mapping[str, Optional[str]] = field(default_factory=dict)
    core: Optional[str] = None
    """megatron-core on the path, wheel or checkout."""
    core_can_train: bool = False
    """megatron.training lies beside it."""
    checkouts: Mapping[str, Optional[Checkout]] = field(default_factory=dict)
    cann: Optional[str] = None
    cann_home: Optional[str] = None
    """ASCEND_HOME_PATH, which CANN's set_env.sh sets."""
    npu_driver: Optional[str] = None
    npu_problem: Optional[str] = None
    """Why npu-smi lists nothing."""
    npus: tuple[Chip, ...] = ()
    cuda_driver: Optional[str] = None
    cuda_of_driver: Optional[str] = None
    """Newest CUDA that the driver serves."""
    gpus: tuple[Chip, ...] = ()
    video_codecs: tuple[str, ...] = ()
    """Of those in the matrix, what PyAV can decode."""
    shared_memory_gib: Optional[float] = None

    @property
    def kind(self) -> str:
        """npu, cuda or cpu: what the machine has or is meant to have."""
        if self.npus or self.npu_driver or self.cann_home or self.packages.get("torch_npu"):
            return "npu"
        return "cuda" if self.gpus or self.cuda_driver else "cpu"


def inspect(environment: Mapping[str, str] = os.environ) -> Installation:
    """Looks at this machine. Starts npu-smi, nvidia-smi and git where they are found; changes nothing."""
    home = environment.get("ASCEND_HOME_PATH") or environment.get("ASCEND_TOOLKIT_HOME")
    listing, npu_problem = _output(["npu-smi", "info"], environment)
    driver, npus = read_npu_smi(listing)
    gpu_listing, _ = _output(["nvidia-smi"], environment)
    gpu_rows, _ = _output(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"], environment)
    cuda_driver, cuda = read_nvidia_smi(gpu_listing)
    core, can_train = find_core()
    return Installation(
        python=platform.python_version(),
        packages=versions([*(requirement.name for requirement in PACKAGES), *_OPTIONAL]),
        core=core,
        core_can_train=can_train,
        checkouts={name: find_checkout(project.package) for name, project in ASCEND.projects},
        cann=read_cann(Path(home)) if home else None,
        cann_home=home,
        npu_driver=read_driver(Path(environment.get("ASCEND_DRIVER_INFO", _DRIVER_INFO))) or driver,
        npu_problem=npu_problem,
        npus=npus,
        cuda_driver=cuda_driver,
        cuda_of_driver=cuda,
        gpus=read_gpus(gpu_rows),
        video_codecs=video_codecs(),
        shared_memory_gib=shared_memory(),
    )


def versions(names: Iterable[str]) -> dict[str, Optional[str]]:
    """Version of each distribution, None where it is not installed."""
    found: dict[str, Optional[str]] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def read_cann(home: Path) -> Optional[str]:
    """Version of the CANN toolkit below a folder, from the file its installer writes: 9.1.0."""
    for path in sorted(home.glob("*-linux/ascend_toolkit_install.info")):
        match = re.search(r"^version=(\S+)", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if match:
            return match[1]
    return None


def read_driver(path: Path) -> Optional[str]:
    """Version in the file that Ascend's driver installs: 25.5.0."""
    try:
        match = re.search(r"^Version=(\S+)", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    except OSError:
        return None
    return match[1] if match else None


def read_npu_smi(listing: str) -> tuple[Optional[str], tuple[Chip, ...]]:
    """Driver version and chips out of `npu-smi info`: two rows a chip, the name and health in the first, the memory in the second."""
    version = re.search(r"Version:\s*(\S+)", listing)
    chips, name, healthy = [], "", True
    for row in listing.splitlines():
        head = re.match(r"\|\s*\d+\s+(\S*[A-Za-z]\S*)\s*\|\s*(\S+)\s*\|", row)
        memory = re.search(r"\|[^|]*?(\d+)\s*/\s*(\d+)\s*\|\s*$", row)
        if head and "Process" not in row:
            name, healthy = head[1], head[2] == "OK"
        elif memory and name:
            chips.append(Chip(name=name, memory_gib=int(memory[2]) / 1024, healthy=healthy))
            name = ""
    return (version[1] if version else None), tuple(chips)


def read_nvidia_smi(listing: str) -> tuple[Optional[str], Optional[str]]:
    """Driver version, and the newest CUDA it serves, out of `nvidia-smi`."""
    driver, cuda = (re.search(rf"{name} Version:\s*([\d.]+)", listing) for name in ("Driver", "CUDA"))
    return (driver[1] if driver else None), (cuda[1] if cuda else None)


def read_gpus(rows: str) -> tuple[Chip, ...]:
    """GPUs out of nvidia-smi's CSV of names and MiB."""
    matches = (re.fullmatch(r"(.+), (\d+)", row.strip()) for row in rows.splitlines())
    return tuple(Chip(name=match[1], memory_gib=int(match[2]) / 1024) for match in matches if match)


def find_core() -> tuple[Optional[str], bool]:
    """Version of the megatron-core that Python would import, and whether megatron.training lies there too. Imports neither."""
    folders = _folders("megatron")
    for folder in folders:
        info = folder / "core" / "package_info.py"
        if info.is_file():
            text = info.read_text(encoding="utf-8", errors="replace")
            parts = [re.search(rf"^{part} = (\d+)", text, re.MULTILINE) for part in ("MAJOR", "MINOR", "PATCH")]
            version = ".".join(match[1] for match in parts if match)
            return version or None, any((place / "training").is_dir() for place in folders)
    return None, False


def find_checkout(package: str) -> Optional[Checkout]:
    """Where Python would import a package from, and what git says about the folder."""
    folders = _folders(package)
    if not folders:
        return None
    root = folders[0].parent
    name = _git(root, "describe", "--tags", "--exact-match") or _git(root, "symbolic-ref", "--short", "HEAD")
    return Checkout(folder=str(root), ref=name, commit=_git(root, "rev-parse", "HEAD"))


def video_codecs() -> tuple[str, ...]:
    """What PyAV decodes, of the codecs that matter; nothing where it does not load."""
    try:
        import av
    except (ImportError, OSError):
        return ()
    return tuple(name for name in VIDEO_CODECS if name in av.codecs_available)


def shared_memory() -> Optional[float]:
    """Size of /dev/shm in GiB."""
    try:
        return shutil.disk_usage("/dev/shm").total / 2**30
    except OSError:
        return None


def _folders(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []


def _git(folder: Path, *arguments: str) -> Optional[str]:
    # megatron/ may be a copy inside another project's checkout: only a checkout of its own tells a version
    return _output(["git", "-C", str(folder), *arguments], os.environ)[0].strip() or None if (folder / ".git").exists() else None


def _output(command: list[str], environment: Mapping[str, str]) -> tuple[str, Optional[str]]:
    """(what a command prints, None), or ("", why it prints nothing)."""
    program = shutil.which(command[0], path=environment.get("PATH"))
    if program is None:
        return "", f"{command[0]} is not on PATH"
    try:
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=60, env=dict(environment))
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"{command[0]} does not run: {error}"
    if done.returncode:
        return "", f"{command[0]} ends with status {done.returncode}: {' '.join((done.stderr or done.stdout).split())[:200]}"
    return done.stdout, None
