"""Which versions go together: the tables, with their sources, and nothing else. `rules.py` judges an installation by them.

Sources, read in November 2026: MindSpeed-LLM's release notes 26.1.0 (tables 1 to 3), TorchNPU's COMPATIBILITY page, the release notes of
CANN 8.5.0 and 9.1.0 (compatibility with Ascend HDK, the driver). scripts/install_ascend.sh pins the same versions; a test compares them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: 8.3.RC1 -> (8, 3), 2.7.1.post8 -> (2, 7, 1), 2.13.0+cpu -> (2, 13, 0)."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", version.strip())
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def line(version: str) -> tuple[int, ...]:
    """The first two numbers, which say what goes with what."""
    return numbers(version)[:2]


@dataclass(frozen=True)
class Requirement:
    """A package and the versions of it that work, in pip's words: torch>=2.7,<2.16."""

    text: str

    @property
    def name(self) -> str:
        """The package."""
        return re.split("[<>=]", self.text)[0]

    def allows(self, version: str) -> bool:
        """Whether a version lies in the range."""
        low, below = (re.search(rf"{sign}([\d.]+)", self.text) for sign in (">=", "<"))
        high_enough = low is None or numbers(version) >= numbers(low[1])
        return high_enough and (below is None or numbers(version) < numbers(below[1]))


PYTHON = ("3.10", "3.11", "3.12", "3.13")
"""Tested lines of Python; scripts/locks has the tested versions for each."""
MINDSPEED_PYTHON = ("3.10", "3.11")
"""Lines of Python that MindSpeed-LLM supports."""

PACKAGES = tuple(
    map(
        Requirement,
        (
            "torch>=2.7,<2.16",
            "transformers>=4.57,<6",
            "jinja2>=3.1",
            "safetensors>=0.4.5",
            "tokenizers>=0.21",
            "pillow>=10.0",
            "av>=12.0",
            "numpy>=1.26,<3",
            "pyarrow>=15",
            "pydantic>=2.10,<3",
            "pyyaml>=6.0",
            "rich>=13.0",
            "xxhash>=3.4,<5",
            "tensorboard>=2.14",
        ),
    )
)
"""What requirements.txt asks for, megatron-core apart."""
FLASH_ATTN = Requirement("flash-attn>=2.7")
"""Optional, on CUDA only."""
CORE_LINES = ((0, 12), (0, 16), (0, 19))
"""Lines of megatron-core that the tests run on."""
CORE_INSTALL = "megatron-core>=0.16.1,<0.20,!=0.17.*,!=0.18.*"
"""What requirements.txt asks for: 0.19 from Python 3.12 on, 0.16.1 below. 0.12 comes with MindSpeed-LLM's checkout of Megatron-LM."""


@dataclass(frozen=True, kw_only=True)
class TorchNpu:
    """One release of torch_npu."""

    wheel: str
    torch: str
    cann: str


TORCH_NPU = (
    TorchNpu(wheel="2.12.0", torch="2.12.0", cann="9.1.0"),
    TorchNpu(wheel="2.11.0", torch="2.11.0", cann="9.1.0"),
    TorchNpu(wheel="2.10.0.post4", torch="2.10.0", cann="9.1.0"),
    TorchNpu(wheel="2.9.0.post6", torch="2.9.0", cann="9.1.0"),
    TorchNpu(wheel="2.7.1.post8", torch="2.7.1", cann="9.1.0"),
    TorchNpu(wheel="2.10.0", torch="2.10.0", cann="9.0.0"),
    TorchNpu(wheel="2.9.0.post2", torch="2.9.0", cann="9.0.0"),
    TorchNpu(wheel="2.8.0.post4", torch="2.8.0", cann="9.0.0"),
    TorchNpu(wheel="2.7.1.post4", torch="2.7.1", cann="9.0.0"),
    TorchNpu(wheel="2.9.0", torch="2.9.0", cann="8.5.0"),
    TorchNpu(wheel="2.8.0.post2", torch="2.8.0", cann="8.5.0"),
    TorchNpu(wheel="2.7.1.post2", torch="2.7.1", cann="8.5.0"),
    TorchNpu(wheel="2.8.0", torch="2.8.0", cann="8.3.RC1"),
    TorchNpu(wheel="2.7.1", torch="2.7.1", cann="8.3.RC1"),
)
CANN_LOWEST = "8.3"
"""npu_fusion_attention takes softmax_layout="TND" from here on."""
DRIVER_LOWEST: dict[tuple[int, ...], str] = {(9, 1): "25.2", (9, 0): "25.0", (8, 5): "25.0"}
"""CANN line -> oldest driver (Ascend HDK). Other lines: see CANN's release notes."""


@dataclass(frozen=True, kw_only=True)
class Project:
    """An upstream project that has no wheel: a checkout at a branch or tag."""

    package: str
    """What Python imports."""
    url: str
    ref: str
    """Branch or tag."""
    commit: str
    """What the patches' signature table was taken from, and the tests ran with."""


@dataclass(frozen=True, kw_only=True)
class AscendRelease:
    """The set that MindSpeed-LLM is released with; what scripts/install_ascend.sh installs."""

    python: str = "3.10"
    torch: str = "2.7.1"
    torch_npu: str = "2.7.1.post8"
    cann: str = "9.1.0"
    transformers: str = "5.2.0"
    core: str = "0.12"
    projects: tuple[tuple[str, Project], ...] = (
        (
            "Megatron-LM",
            Project(
                package="megatron",
                url="https://github.com/NVIDIA/Megatron-LM.git",
                ref="core_v0.12.1",
                commit="a845aa7e12b3a117e24c2352b9e3e60bad2e3a17",
            ),
        ),
        (
            "MindSpeed",
            Project(
                package="mindspeed",
                url="https://gitcode.com/Ascend/MindSpeed.git",
                ref="26.1.0_core_r0.12.1",
                commit="57a33053c4eccd5b14aa58e3ca595ab414e65b94",
            ),
        ),
        (
            "MindSpeed-LLM",
            Project(
                package="mindspeed_llm",
                url="https://gitcode.com/Ascend/MindSpeed-LLM.git",
                ref="26.1.0",
                commit="ad615b3b343f6305e9a0ce8bcc3ec42052322860",
            ),
        ),
    )


ASCEND = AscendRelease()

VIDEO_CODECS = ("h264", "hevc", "vp9", "mpeg4")
"""What the videos of the paper's data sets are coded with."""
MEMORY_GIB = {"npu": 60, "cuda": 90}
"""A device with less is too small for the full-size recipes (64 GB NPUs and 96 GB GPUs, as they report themselves)."""
SHARED_MEMORY_GIB = 8
"""/dev/shm below this makes loader processes die with a bus error; containers start with 64 MiB."""
DISK_MB_PER_SECOND = 200
"""Slower reading than this starves the loaders of one node. A rule of thumb: 8 devices, a picture of 200 KB per 3,000 tokens."""


def torch_npu_row(wheel: str) -> Optional[TorchNpu]:
    """The table's row of a torch_npu, or None."""
    return next((row for row in TORCH_NPU if row.wheel == wheel.split("+")[0]), None)


def torch_npu_for(torch: str, cann: Optional[str]) -> Optional[TorchNpu]:
    """The newest torch_npu for a torch, on the given CANN's line if there is one."""
    rows = [row for row in TORCH_NPU if numbers(row.torch) == numbers(torch)]
    return next((row for row in rows if cann and line(row.cann) == line(cann)), rows[0] if rows else None)
