"""Verdicts on fake installations: every mismatch has its own finding and a remedy that says what to type."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from mindspeed_vita.checks.doctor import matrix
from mindspeed_vita.checks.doctor.device import Seen
from mindspeed_vita.checks.doctor.disk import DiskSpeed
from mindspeed_vita.checks.doctor.installation import Checkout, Chip, Installation
from mindspeed_vita.checks.doctor.report import as_json, as_text, verdict
from mindspeed_vita.checks.doctor.rules import Finding, judge, judge_disk

ROOT = Path(__file__).resolve().parents[4]
PACKAGES = {
    "torch": "2.7.1+cpu", "transformers": "5.2.0", "jinja2": "3.1.6", "safetensors": "0.5.0", "tokenizers": "0.22.0", "pillow": "11.0.0",
    "av": "14.0.0", "numpy": "1.26.0", "pyarrow": "20.0.0", "pydantic": "2.11.0", "pyyaml": "6.0.2", "rich": "13.9.0", "xxhash": "3.5.0",
    "tensorboard": "2.19.0",
}  # fmt: skip
ASCEND = Installation(
    python="3.10.14",
    packages={**PACKAGES, "torch_npu": "2.7.1.post8"},
    core="0.12.1",
    core_can_train=True,
    checkouts={
        name: Checkout(folder=f"/up/{name}", ref=project.ref, commit=project.commit) for name, project in matrix.ASCEND.projects
    },
    cann="9.1.0",
    cann_home="/usr/local/Ascend/cann",
    npu_driver="25.5.0",
    npus=(Chip(name="910B2", memory_gib=64),) * 8,
    video_codecs=matrix.VIDEO_CODECS,
    shared_memory_gib=64,
)
SEES_NPUS = Seen(torch="2.7.1+cpu", devices=(("Ascend910B2", 60.0, 61.0),) * 8, collectives="hccl")
GPU = Installation(
    python="3.11.9",
    packages={**PACKAGES, "torch": "2.13.0", "flash-attn": "2.8.3"},
    core="0.16.1",
    cuda_driver="570.124.06",
    cuda_of_driver="12.8",
    gpus=(Chip(name="NVIDIA H20", memory_gib=95.6),) * 8,
    video_codecs=matrix.VIDEO_CODECS,
    shared_memory_gib=64,
)
SEES_GPUS = Seen(torch="2.8.0", cuda="12.8", devices=(("NVIDIA H20", 94.0, 95.1),) * 8, collectives="nccl")
CPU = replace(GPU, cuda_driver=None, cuda_of_driver=None, gpus=())
SEES_CPU = Seen(torch="2.8.0", collectives="gloo")


def on_ascend(here: Installation = ASCEND, seen: Seen = SEES_NPUS, engine: str = "mindspeed-llm") -> dict[str, Finding]:
    return {finding.name: finding for finding in judge(here, seen, kind="npu", engine=engine)}


def with_package(here: Installation, **packages: str | None) -> Installation:
    names = {name.replace("_attn", "-attn").replace("_ascend", "-ascend"): version for name, version in packages.items()}
    return replace(here, packages={**here.packages, **names})


def with_checkout(name: str, checkout: Checkout | None) -> Installation:
    return replace(ASCEND, checkouts={**ASCEND.checkouts, name: checkout})


def test_installations_that_fit_have_no_problem():
    assert {finding.status for finding in on_ascend().values()} == {"ok"}
    assert {finding.status for finding in judge(GPU, SEES_GPUS, kind="cuda", engine="builtin")} == {"ok"}
    for python in matrix.PYTHON:
        here = replace(CPU, python=f"{python}.4")
        findings = judge(here, SEES_CPU, kind="cpu", engine="builtin")
        assert {finding.status for finding in findings if finding.name != "tested set"} == {"ok"}
    builtin = replace(with_package(ASCEND, transformers="4.57.6"), core="0.16.1", core_can_train=False, checkouts={})
    findings = on_ascend(builtin, engine="builtin").values()
    assert {finding.status for finding in findings if finding.name != "tested set"} == {"ok"}


@pytest.mark.parametrize(
    "python, torch, core, status, text",
    [
        ("3.11.9", "2.13.0+cpu", "0.12.3", "ok", "torch 2.13.0, megatron-core 0.16.1 or 0.12.3 (everything"),
        ("3.12.4", "2.14.1", "0.19.2", "ok", "Python 3.12, torch 2.14.1, megatron-core 0.19.2"),
        ("3.12.4", "2.14.1", "0.18.2", "note", "closest: Python 3.12, torch 2.14.1"),
        ("3.10.14", "2.9.0", "0.16.1", "note", "Python 3.10.14, torch 2.9.0, megatron-core 0.16.1 were not tested together"),
        ("3.11.9", "2.9.0", None, "note", "closest: Python 3.11, torch 2.13.0"),
    ],
)
def test_versions_that_were_tested_together_are_told_from_others(python, torch, core, status, text):
    here = replace(with_package(CPU, torch=torch), python=python, core=core)
    finding = {one.name: one for one in judge(here, SEES_CPU, kind="cpu", engine="builtin")}["tested set"]
    assert finding.status == status and text in f"{finding.found} {finding.expected}"


OTHER = Checkout(folder="/m", ref="master", commit="ab" * 20)


@pytest.mark.parametrize(
    "here, name, found, remedy",
    [
        (replace(ASCEND, python="3.9.7"), "python", "3.9.7", "Python 3.10"),
        (replace(ASCEND, python="3.12.1"), "python", "3.12.1", "Python 3.10"),
        (with_package(ASCEND, torch=None), "torch", "not installed", 'pip install "torch==2.7.1"'),
        (with_package(ASCEND, transformers="4.43.2"), "transformers", "4.43.2", 'pip install "transformers==5.2.0"'),
        (with_package(ASCEND, av=None), "av", "not installed", 'pip install "av>=12.0"'),
        (with_package(ASCEND, torch_npu=None), "torch_npu", "not installed", "pip install torch-npu==2.7.1.post8"),
        (with_package(ASCEND, torch_npu="2.6.0.post5"), "torch_npu", "2.6.0.post5, torch is 2.7.1", "torch-npu==2.7.1.post8"),
        (with_package(ASCEND, torch="2.9.0"), "torch_npu", "torch is 2.9.0", "torch-npu==2.9.0.post6"),
        (with_package(ASCEND, torch="2.7.0"), "torch_npu", "torch is 2.7.0", "pip install torch==2.7.1 torch-npu==2.7.1.post8"),
        (replace(ASCEND, cann_home=None, cann=None), "CANN", "ASCEND_HOME_PATH is not set", "source set_env.sh"),
        (replace(ASCEND, cann=None), "CANN", "holds no", "install CANN 9.1.0 .*source set_env.sh"),
        (replace(ASCEND, cann="8.5.0"), "CANN", "8.5.0", "install CANN 9.1.0, or pip install torch-npu==2.7.1.post2"),
        (replace(ASCEND, cann="8.0.RC3"), "CANN", "8.0.RC3", "install CANN 9.1.0"),
        (replace(ASCEND, npu_driver="25.0.rc1.1"), "driver", "25.0.rc1.1", "driver and firmware 25.2 or newer"),
        (replace(ASCEND, npu_driver=None, npu_problem="npu-smi is not on PATH"), "driver", "npu-smi is not on PATH", "install driver"),
        (replace(ASCEND, core="0.16.1", core_can_train=False), "megatron-core", "without megatron.training", "first on PYTHONPATH"),
        (replace(ASCEND, core=None, core_can_train=False), "megatron-core", "not installed", "env.sh"),
        (with_checkout("MindSpeed", None), "MindSpeed", "not on PYTHONPATH", "git clone -b 26.1.0_core_r0.12.1"),
        (with_checkout("MindSpeed", OTHER), "MindSpeed", "master at ababab", "git -C /m checkout 57a3.*vita patches verify"),
        (with_checkout("MindSpeed-LLM", OTHER), "MindSpeed-LLM", "master at ababab", "git -C /m checkout ad61"),
        (replace(ASCEND, npus=(replace(ASCEND.npus[0], healthy=False),)), "health", "these are not OK: 0", "ASCEND_RT_VISIBLE_DEVICES"),
        (replace(ASCEND, video_codecs=("mpeg4",)), "video", "PyAV decodes mpeg4", "pip install --force-reinstall"),
    ],
)  # fmt: skip
def test_a_mismatch_on_ascend_is_a_problem_with_a_remedy(here, name, found, remedy):
    finding = on_ascend(here)[name]
    assert finding.status == "problem" and found in finding.found
    assert re.search(remedy, finding.remedy), finding.remedy


@pytest.mark.parametrize(
    "here, name, expected",
    [
        (with_package(ASCEND, torch="2.9.0", torch_npu="2.9.0.post6"), "torch", "2.7.1, which MindSpeed-LLM 26.1.0 pairs with"),
        (with_package(ASCEND, transformers="4.57.1"), "transformers", "5.2.0, which MindSpeed-LLM 26.1.0 pairs with"),
        (with_package(ASCEND, torch_npu="2.7.1.post99"), "torch_npu", "2.7.1.post8 beside torch 2.7.1"),
        (replace(with_package(ASCEND, torch_npu="2.7.1"), cann="8.3.RC2"), "driver", "no table here for CANN 8.3.RC2"),
        (with_checkout("MindSpeed", Checkout(folder="/m")), "MindSpeed", "26.1.0_core_r0.12.1 at 57a3305"),
        (with_checkout("MindSpeed-LLM", Checkout(folder="/m", ref="26.1.0", commit="ab" * 20)), "MindSpeed-LLM", "26.1.0 at ad615b3"),
        (with_package(ASCEND, triton="3.3.0", triton_ascend="3.2.1"), "triton", "one of them"),
        (replace(ASCEND, shared_memory_gib=0.0625), "shared memory", "8 GiB"),
    ],
)
def test_what_may_work_is_a_note(here, name, expected):
    finding = on_ascend(here)[name]
    assert finding.status == "note" and expected in finding.expected
    assert not any(finding.status == "problem" for finding in on_ascend(here).values())


@pytest.mark.parametrize(
    "seen, name, status, text",
    [
        (Seen(error="ImportError: libhccl.so: cannot open shared object file"), "devices", "problem", "libhccl.so"),
        (Seen(torch="2.7.1", error="ImportError: libhccl.so"), "collectives", "problem", "hccl"),
        (Seen(torch="2.7.1"), "devices", "problem", "npu-smi info lists 8"),
        (replace(SEES_NPUS, devices=(("Ascend910B4", 29.0, 30.0),)), "devices", "note", "60 GiB each"),
        (replace(SEES_NPUS, devices=(("Ascend910B2", 9.0, 61.0),)), "devices", "note", "another process holds memory"),
    ],
)
def test_what_torch_sees_of_the_devices_is_judged(seen, name, status, text):
    finding = on_ascend(seen=seen)[name]
    assert finding.status == status and text in f"{finding.found} {finding.expected} {finding.remedy}"


@pytest.mark.parametrize(
    "here, seen, name, status, text",
    [
        (GPU, replace(SEES_GPUS, cuda=None), "CUDA", "problem", "built without CUDA"),
        (GPU, replace(SEES_GPUS, cuda="13.0"), "CUDA", "problem", "update the driver"),
        (replace(GPU, cuda_driver=None), SEES_GPUS, "CUDA", "problem", "install NVIDIA's driver"),
        (with_package(GPU, flash_attn=None), SEES_GPUS, "flash-attn", "note", "torch's own kernels are used"),
        (with_package(GPU, flash_attn="2.3.0"), SEES_GPUS, "flash-attn", "note", "flash-attn>=2.7"),
        (replace(GPU, core="0.20.0"), SEES_GPUS, "megatron-core", "problem", "pip install \"megatron-core>=0.16.1,<0.20"),
        (replace(GPU, core="0.14.0"), SEES_GPUS, "megatron-core", "note", "which are tested"),
        (replace(GPU, core="0.19.2"), SEES_GPUS, "megatron-core", "ok", "0.19.2"),
        (replace(GPU, python="3.14.0"), SEES_GPUS, "python", "note", "3.10, 3.11, 3.12 or 3.13"),
        (with_package(GPU, torch="2.5.1"), SEES_GPUS, "torch", "problem", 'pip install "torch>=2.7,<2.16"'),
    ],
)
def test_mismatches_on_a_gpu_machine(here, seen, name, status, text):
    finding = {finding.name: finding for finding in judge(here, seen, kind="cuda", engine="builtin")}[name]
    assert finding.status == status and text in f"{finding.found} {finding.expected} {finding.remedy}"


def test_every_finding_that_is_not_ok_says_what_to_do():
    empty = Installation(python="3.8.10", shared_memory_gib=0.06)
    for kind, engine in (("npu", "mindspeed-llm"), ("npu", "builtin"), ("cuda", "builtin"), ("cpu", "builtin")):
        findings = judge(empty, Seen(error="no torch"), kind=kind, engine=engine)
        assert all(finding.remedy for finding in findings if finding.status != "ok"), (kind, engine)
        assert verdict(findings).startswith("FAIL: ")


def test_a_slow_disk_is_a_note_and_a_missing_folder_a_problem():
    slow = judge_disk("/data", DiskSpeed(files=10, bytes=50_000_000, seconds=1.0, cached=False))
    assert slow.status == "note" and "50 MB/s over 10 files" in slow.found and "local or faster disk" in slow.remedy
    assert judge_disk("/data", DiskSpeed(files=10, bytes=500_000_000, seconds=1.0, cached=False)).status == "ok"
    assert judge_disk("/gone", None, "/gone is no folder").status == "problem"


def test_text_and_json_say_the_same():
    findings = list(on_ascend(replace(ASCEND, cann="8.5.0")).values())
    text = as_text(findings, kind="npu", engine="mindspeed-llm")
    assert re.search(r"PROBLEM CANN +8.5.0\n +expected: 9.1.0.*\n +remedy: install CANN 9.1.0", text)
    assert text.splitlines()[-1] == "FAIL: 1 problem, no notes"
    content = json.loads(as_json(findings, kind="npu", engine="mindspeed-llm"))
    assert not content["ok"] and content["device"] == "npu"
    assert [row["name"] for row in content["findings"] if row["status"] == "problem"] == ["CANN"]


def test_the_matrix_asks_for_what_the_package_requires():
    rows = [row.split("#")[0].split(";")[0].strip() for row in (ROOT / "requirements.txt").read_text().splitlines()]
    required = {row for row in rows if row and not row.startswith(("megatron-core", "tomli"))}
    assert {requirement.text for requirement in matrix.PACKAGES} == required
    assert matrix.CORE_INSTALL in rows


def test_the_upstream_commits_are_those_that_the_patches_were_checked_against():
    table = json.loads((ROOT / "patches" / "signatures" / "mindspeed_llm_26.1.0.json").read_text())["projects"]
    pinned = {name: (project.ref, project.commit) for name, project in matrix.ASCEND.projects}
    assert pinned == {name: (row["branch"], row["commit"]) for name, row in table.items()}


@pytest.mark.parametrize(
    "version, expected",
    [("8.3.RC1", (8, 3)), ("2.7.1.post8", (2, 7, 1)), ("2.13.0+cpu", (2, 13, 0)), ("25.0.rc1.1", (25, 0)), ("v26.1", (26, 1)), ("", ())],
)
def test_numbers_of_a_version(version, expected):
    assert matrix.numbers(version) == expected
