"""From what is installed to findings: what was found, what was expected, and one plain remedy for each mismatch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Optional

from mindspeed_vita.checks.doctor import matrix
from mindspeed_vita.checks.doctor.device import Seen
from mindspeed_vita.checks.doctor.disk import DiskSpeed
from mindspeed_vita.checks.doctor.installation import Installation
from mindspeed_vita.checks.doctor.matrix import ASCEND, line, numbers
from mindspeed_vita.checks.doctor.tested_sets import closest
from mindspeed_vita.choices import VIDEO_READERS

Status = Literal["ok", "note", "problem"]
_SET_ENV = "source set_env.sh of CANN (/usr/local/Ascend/cann/set_env.sh unless it was installed elsewhere)"
_DRIVER_PAGE = "hiascend.com -> firmware and drivers"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    name: str
    status: Status
    """note: it works, but something optional is absent or not the recommended one."""
    found: str
    expected: str = ""
    remedy: str = ""


def judge(here: Installation, seen: Seen, *, kind: str, engine: str) -> list[Finding]:
    """All findings about versions and devices.

    Args:
        here: what is installed.
        seen: what torch sees.
        kind: npu, cuda or cpu.
        engine: builtin or mindspeed-llm.
    """
    mindspeed = engine == "mindspeed-llm"
    findings = [_python(here, mindspeed), *_packages(here, mindspeed)]
    if kind == "npu":
        findings += [_torch_npu(here), _cann(here), _npu_driver(here), *_triton(here)]
    if kind == "cuda":
        findings += [_cuda(here, seen), _flash_attn(here)]
    findings.append(_core(here, mindspeed))
    if mindspeed:
        findings += _projects(here)
    else:
        findings.append(_together(here))
    return [*findings, *_devices(here, seen, kind), _collectives(seen, kind), *_media(here), *_shared_memory(here)]


def judge_disk(path: str, speed: Optional[DiskSpeed], reason: str = "") -> Finding:
    """The finding about the data folder; `reason` says why there is no speed."""
    if speed is None:
        return Finding(name="disk", status="problem", found=reason, remedy="give the folder of the data with --data, or set DATA_ROOT")
    found = f"{speed.mb_per_second:,.0f} MB/s over {speed.files:,} files of {path}"
    if speed.cached:
        found += " (possibly from memory: the page cache cannot be passed by here)"
    if speed.mb_per_second >= matrix.DISK_MB_PER_SECOND:
        return Finding(name="disk", status="ok", found=found)
    return Finding(
        name="disk",
        status="note",
        found=found,
        expected=f"{matrix.DISK_MB_PER_SECOND} MB/s a node",
        remedy="copy the data to a local or faster disk, or raise data.num_workers where many readers are faster than one",
    )


def _python(here: Installation, mindspeed: bool) -> Finding:
    lines = matrix.MINDSPEED_PYTHON if mindspeed else matrix.PYTHON
    supported = [numbers(version) for version in lines]
    if line(here.python) in supported:
        return Finding(name="python", status="ok", found=here.python)
    old = line(here.python) < supported[0]
    return Finding(
        name="python",
        status="problem" if old or mindspeed else "note",
        found=here.python,
        expected=f"{', '.join(lines[:-1])} or {lines[-1]}",
        remedy=f"make the environment with Python {ASCEND.python if mindspeed else '3.11'}",
    )


def _packages(here: Installation, mindspeed: bool) -> Iterator[Finding]:
    pinned = {"torch": ASCEND.torch, "transformers": ASCEND.transformers} if mindspeed else {}
    for requirement in matrix.PACKAGES:
        name, version = requirement.name, here.packages.get(requirement.name)
        pin = pinned.get(name)
        install = f'pip install "{name}=={pin}"' if pin else f'pip install "{requirement.text}"'
        if version is None or not requirement.allows(version):
            yield Finding(name=name, status="problem", found=version or "not installed", expected=requirement.text, remedy=install)
        elif pin and numbers(version) != numbers(pin):
            expected = f"{pin}, which MindSpeed-LLM {_ref('MindSpeed-LLM')} pairs with"
            yield Finding(name=name, status="note", found=version, expected=expected, remedy=install)
        else:
            yield Finding(name=name, status="ok", found=version)


def _torch_npu(here: Installation) -> Finding:
    torch, wheel = here.packages.get("torch"), here.packages.get("torch_npu")
    fitting = matrix.torch_npu_for(torch, here.cann) if torch else None
    install = f"pip install torch-npu=={fitting.wheel}" if fitting else f"pip install torch=={ASCEND.torch} torch-npu=={ASCEND.torch_npu}"
    expected = f"{fitting.wheel} beside torch {torch}" if fitting else f"{ASCEND.torch_npu} beside torch {ASCEND.torch}"
    if wheel is None:
        return Finding(name="torch_npu", status="problem", found="not installed", expected=expected, remedy=install)
    if torch and numbers(wheel) != numbers(torch):
        return Finding(name="torch_npu", status="problem", found=f"{wheel}, torch is {torch}", expected=expected, remedy=install)
    row = matrix.torch_npu_row(wheel)
    if row is None:
        found = f"{wheel}, not in the table of releases"
        return Finding(name="torch_npu", status="note", found=found, expected=expected, remedy=f"if it fails: {install}")
    return Finding(name="torch_npu", status="ok", found=f"{wheel}, made for torch {row.torch} and CANN {row.cann}")


def _cann(here: Installation) -> Finding:
    row = matrix.torch_npu_row(here.packages.get("torch_npu") or "")
    wanted = row.cann if row else ASCEND.cann
    if here.cann_home is None:
        return Finding(name="CANN", status="problem", found="ASCEND_HOME_PATH is not set", expected=wanted, remedy=_SET_ENV)
    if here.cann is None:
        found = f"ASCEND_HOME_PATH={here.cann_home} holds no *-linux/ascend_toolkit_install.info"
        remedy = f"install CANN {wanted} (toolkit, ops, NNAL); {_SET_ENV}"
        return Finding(name="CANN", status="problem", found=found, expected=wanted, remedy=remedy)
    if numbers(here.cann) < numbers(matrix.CANN_LOWEST):
        remedy = f"install CANN {ASCEND.cann} and torch-npu {ASCEND.torch_npu} with torch {ASCEND.torch}"
        return Finding(name="CANN", status="problem", found=here.cann, expected=f"{matrix.CANN_LOWEST} or newer", remedy=remedy)
    if row and line(row.cann) != line(here.cann):
        other = matrix.torch_npu_for(row.torch, here.cann)
        swap = f", or pip install torch-npu=={other.wheel}" if other and line(other.cann) == line(here.cann) else ""
        expected = f"{row.cann}, which torch_npu {row.wheel} is made for"
        return Finding(name="CANN", status="problem", found=here.cann, expected=expected, remedy=f"install CANN {row.cann}{swap}")
    return Finding(name="CANN", status="ok", found=f"{here.cann} in {here.cann_home}")


def _npu_driver(here: Installation) -> Finding:
    lowest = matrix.DRIVER_LOWEST.get(line(here.cann or ASCEND.cann))
    expected = f"{lowest} or newer for CANN {here.cann or ASCEND.cann}" if lowest else ""
    if here.npu_driver is None:
        found = here.npu_problem or "npu-smi tells no version"
        remedy = f"install driver and firmware ({_DRIVER_PAGE}); into a container map npu-smi, the driver's folder and /dev/davinci*"
        return Finding(name="driver", status="problem", found=found, expected=expected, remedy=remedy)
    if lowest and line(here.npu_driver) < numbers(lowest):
        remedy = f"install driver and firmware {lowest} or newer ({_DRIVER_PAGE}), or an older CANN with its torch_npu"
        return Finding(name="driver", status="problem", found=here.npu_driver, expected=expected, remedy=remedy)
    if not lowest:
        note = f"no table here for CANN {here.cann}; its release notes name the drivers"
        return Finding(name="driver", status="note", found=here.npu_driver, expected=note)
    return Finding(name="driver", status="ok", found=here.npu_driver)


def _triton(here: Installation) -> Iterator[Finding]:
    if here.packages.get("triton") and here.packages.get("triton-ascend"):
        found = f"triton {here.packages['triton']} beside triton-ascend {here.packages['triton-ascend']}"
        remedy = "pip uninstall triton triton-ascend; pip install triton-ascend again"
        yield Finding(name="triton", status="note", found=found, expected="one of them: they share a folder", remedy=remedy)


def _cuda(here: Installation, seen: Seen) -> Finding:
    if here.cuda_driver is None:
        remedy = "install NVIDIA's driver, or use DEVICE=cpu"
        return Finding(name="CUDA", status="problem", found="nvidia-smi tells no driver", remedy=remedy)
    driver = f"driver {here.cuda_driver} serves CUDA {here.cuda_of_driver or 'unknown'}"
    if seen.torch and seen.cuda is None:
        remedy = "install a CUDA build of torch (pytorch.org -> Get Started names the index for pip)"
        return Finding(name="CUDA", status="problem", found=f"torch {seen.torch} is built without CUDA; {driver}", remedy=remedy)
    if seen.cuda and here.cuda_of_driver and numbers(seen.cuda)[0] > numbers(here.cuda_of_driver)[0]:
        remedy = f"update the driver, or install a torch built for CUDA {here.cuda_of_driver} or older"
        return Finding(name="CUDA", status="problem", found=f"torch is built for CUDA {seen.cuda}; {driver}", remedy=remedy)
    return Finding(name="CUDA", status="ok", found=f"torch is built for CUDA {seen.cuda}; {driver}")


def _flash_attn(here: Installation) -> Finding:
    version, wanted = here.packages.get(matrix.FLASH_ATTN.name), matrix.FLASH_ATTN
    if version and wanted.allows(version):
        return Finding(name="flash-attn", status="ok", found=version)
    remedy = f'optional: pip install "{wanted.text}" --no-build-isolation; without it torch\'s own kernels are used'
    return Finding(name="flash-attn", status="note", found=version or "not installed", expected=wanted.text, remedy=remedy)


def _core(here: Installation, mindspeed: bool) -> Finding:
    if mindspeed:
        expected = f"{ASCEND.core}.x with megatron.training beside it, from {_ref('Megatron-LM')}"
        remedy = "put Megatron-LM's checkout first on PYTHONPATH: source the env.sh that scripts/install_ascend.sh wrote"
        if here.core and line(here.core) == numbers(ASCEND.core) and here.core_can_train:
            return Finding(name="megatron-core", status="ok", found=f"{here.core}, with megatron.training")
        found = f"{here.core}{'' if here.core_can_train else ', without megatron.training'}" if here.core else "not installed"
        return Finding(name="megatron-core", status="problem", found=found, expected=expected, remedy=remedy)
    lines = " or ".join(f"{major}.{minor}.x" for major, minor in matrix.CORE_LINES)
    remedy = f'pip install "{matrix.CORE_INSTALL}"'
    if here.core is None:
        return Finding(name="megatron-core", status="problem", found="not installed", expected=lines, remedy=remedy)
    if not matrix.CORE_LINES[0] <= line(here.core) <= matrix.CORE_LINES[-1]:
        return Finding(name="megatron-core", status="problem", found=here.core, expected=lines, remedy=remedy)
    if line(here.core) not in matrix.CORE_LINES:
        return Finding(name="megatron-core", status="note", found=here.core, expected=f"{lines}, which are tested", remedy=remedy)
    return Finding(name="megatron-core", status="ok", found=here.core)


def _together(here: Installation) -> Finding:
    """Each version may be in its range although nobody tried them together."""
    best, same = closest(here.python, here.packages.get("torch"), here.core)
    if same:
        return Finding(name="tested set", status="ok", found=f"{best.describe()} ({best.ran})")
    found = f"Python {here.python}, torch {here.packages.get('torch')}, megatron-core {here.core} were not tested together"
    remedy = "none is needed where `vita doctor --parity` passes; otherwise install that set"
    return Finding(name="tested set", status="note", found=found, expected=f"closest: {best.describe()}", remedy=remedy)


def _projects(here: Installation) -> Iterator[Finding]:
    for name, project in ASCEND.projects[1:]:  # Megatron-LM's version was read above; a copy inside MindSpeed-LLM has no git of its own
        checkout = here.checkouts.get(name)
        if checkout is None:
            remedy = f"bash scripts/install_ascend.sh, or git clone -b {project.ref} {project.url} and put it on PYTHONPATH"
            yield Finding(name=name, status="problem", found="not on PYTHONPATH", expected=project.ref, remedy=remedy)
        elif checkout.commit == project.commit:
            yield Finding(name=name, status="ok", found=f"{project.ref} at {project.commit[:7]} in {checkout.folder}")
        else:
            same_branch = checkout.ref in (project.ref, f"v{project.ref}") or checkout.commit is None
            found = f"{checkout.ref or 'no branch'} at {(checkout.commit or 'no commit')[:7]} in {checkout.folder}"
            remedy = f"git -C {checkout.folder} checkout {project.commit[:12]}, or see whether our patches fit it: vita patches verify"
            status: Status = "note" if same_branch else "problem"
            yield Finding(name=name, status=status, found=found, expected=f"{project.ref} at {project.commit[:7]}", remedy=remedy)


def _devices(here: Installation, seen: Seen, kind: str) -> Iterator[Finding]:
    if kind == "cpu":
        return
    listed = here.npus if kind == "npu" else here.gpus
    ill = [str(place) for place, chip in enumerate(listed) if not chip.healthy]
    if ill:
        found = f"of {len(listed)} devices these are not OK: {', '.join(ill)}"
        remedy = "npu-smi info -t health -i N tells more; leave them out with ASCEND_RT_VISIBLE_DEVICES, or reset or replace them"
        yield Finding(name="health", status="problem", found=found, remedy=remedy)
    if not seen.devices:
        tool = "npu-smi info" if kind == "npu" else "nvidia-smi"
        found = seen.error or f"torch sees no {kind} device, {tool} lists {len(listed)}"
        visible = "ASCEND_RT_VISIBLE_DEVICES" if kind == "npu" else "CUDA_VISIBLE_DEVICES"
        remedy = f"solve the problems above first; then compare `{tool}` with {visible}"
        yield Finding(name="devices", status="problem", found=found, remedy=remedy)
        return
    smallest = min(total for _, _, total in seen.devices)
    free = min(free for _, free, _ in seen.devices)
    found = f"{len(seen.devices)} x {seen.devices[0][0]}, {smallest:.0f} GiB each, {free:.0f} GiB free at least"
    wanted = matrix.MEMORY_GIB[kind]
    if smallest < wanted:
        remedy = "more context or tensor parallelism, train.recompute=full (train.offload=inputs frees more), or shorter packs"
        yield Finding(name="devices", status="note", found=found, expected=f"{wanted} GiB each for the full-size recipes", remedy=remedy)
    elif free < 0.9 * smallest:
        remedy = "another process holds memory; end it, or leave the device out"
        yield Finding(name="devices", status="note", found=found, expected="free devices", remedy=remedy)
    else:
        yield Finding(name="devices", status="ok", found=found)


def _collectives(seen: Seen, kind: str) -> Finding:
    wanted = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}[kind]
    if seen.collectives:
        return Finding(name="collectives", status="ok", found=f"{seen.collectives} (one process; `vita doctor --parity` runs several)")
    remedy = "solve the problems above" if kind != "cpu" else "reinstall torch: " + matrix.PACKAGES[0].text
    return Finding(name="collectives", status="problem", found=seen.error or "no device to try it on", expected=wanted, remedy=remedy)


def _media(here: Installation) -> Iterator[Finding]:
    for name in VIDEO_READERS[1:]:  # the first is PyAV, which is required
        version = here.packages.get(name)
        if version:
            yield Finding(name=name, status="ok", found=f"{version} (optional; data.video_reader={name})")
    if here.packages.get("av"):
        lacking = [name for name in matrix.VIDEO_CODECS if name not in here.video_codecs]
        found = f"PyAV decodes {', '.join(here.video_codecs) or 'nothing'}"
        if lacking:
            remedy = 'pip install --force-reinstall --no-cache-dir "av>=12.0" takes the wheel, which brings its own FFmpeg'
            yield Finding(name="video", status="problem", found=found, expected=", ".join(matrix.VIDEO_CODECS), remedy=remedy)
        else:
            yield Finding(name="video", status="ok", found=found)


def _shared_memory(here: Installation) -> Iterator[Finding]:
    size = here.shared_memory_gib
    if size is None or size >= matrix.SHARED_MEMORY_GIB:
        return
    remedy = "start the container with --shm-size=64g (or --ipc=host), or use data.num_workers=0"
    found, expected = f"/dev/shm has {size:.2f} GiB", f"{matrix.SHARED_MEMORY_GIB} GiB for loader processes"
    yield Finding(name="shared memory", status="note", found=found, expected=expected, remedy=remedy)


def _ref(name: str) -> str:
    return dict(ASCEND.projects)[name].ref
