"""What the stage scripts start: torchrun, gloo's interface, MindSpeed-LLM's fused norm, settings for NPUs, a log for each node."""

from __future__ import annotations

import os
import re
import resource
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import config_from_args, parse_args

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
VARIABLES = ("DATA_ROOT", "TOKENIZER", "BASE_WEIGHTS", "OUTPUT_ROOT")
ASCEND = {
    "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
    "TASK_QUEUE_ENABLE": "2",
    "CPU_AFFINITY_CONF": "1",
    "COMBINED_ENABLE": "1",
    "ACLNN_CACHE_LIMIT": "100000",
    "STREAMS_PER_DEVICE": "32",
    "MULTI_STREAM_MEMORY_REUSE": "1",
    "HCCL_CONNECT_TIMEOUT": "7200",
    "HCCL_EXEC_TIMEOUT": "7200",
    "HCCL_EVENT_TIMEOUT": "7260",
    "ACL_DEVICE_SYNC_TIMEOUT": "7260",
    "HCCL_BUFFSIZE": "200",
    "HCCL_IF_BASE_PORT": "25800",
    "HCCL_DETERMINISTIC": "false",
    "NPU_ASD_ENABLE": "0",
}
"""What an NPU gets where the shell has not set it."""
SEVERAL_NODES = {"NNODES": "8", "NODE_RANK": "3", "MASTER_ADDR": "node0"}


def start(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Stage 1 of 14B; `true` stands for Python, so nothing is trained."""
    inherited = {name: value for name, value in os.environ.items() if not name.endswith("SOCKET_IFNAME") and name not in ASCEND}
    given = {"PYTHON": "true", "DEVICE": "npu", "NPROC_PER_NODE": "8", **dict.fromkeys(VARIABLES, "/nowhere"), **variables}
    script = EXAMPLES / "long_vita_14b" / "stage1.sh"
    return subprocess.run(["bash", str(script), *arguments], env={**inherited, **given}, capture_output=True, text=True, timeout=60)


def command(*arguments: str, **variables: str) -> list[str]:
    """Words of the command that stage 1 of 14B would start."""
    done = start(*arguments, DRY_RUN="1", **variables)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


def settings(**variables: str) -> dict[str, str]:
    """Those of ASCEND's names that the command sets."""
    words = command(**variables)
    pairs = (word.split("=", 1) for word in words[1 : words.index("-m") - 1])
    return {name: value for name, value in pairs if name in ASCEND}


def test_torchrun_waits_two_hours_for_a_node_that_starts_late():
    words = command(**SEVERAL_NODES)
    config, _, _ = config_from_args(parse_args(words[words.index("mindspeed_vita.cli.torchrun") + 1 :]))
    assert config.rdzv_configs == {"timeout": "7200", "rank": 3} and config.max_nodes == 8


@pytest.mark.parametrize(
    "variables, interface",
    [
        ({"HCCL_SOCKET_IFNAME": "lo"}, "lo"),
        ({"NCCL_SOCKET_IFNAME": "lo"}, "lo"),
        ({"GLOO_SOCKET_IFNAME": "bond0", "HCCL_SOCKET_IFNAME": "lo"}, "bond0"),
        ({"HCCL_SOCKET_IFNAME": "=lo"}, None),
        ({"HCCL_SOCKET_IFNAME": "^lo"}, None),
        ({"HCCL_SOCKET_IFNAME": "l"}, None),
        ({"HCCL_SOCKET_IFNAME": "lo", "NNODES": "1"}, None),
        ({}, None),
    ],
)
def test_gloo_takes_the_interface_that_hccl_or_nccl_was_told(variables, interface):
    told = [word for word in command(**{**SEVERAL_NODES, **variables}) if word.startswith("GLOO_SOCKET_IFNAME=")]
    assert told == ([f"GLOO_SOCKET_IFNAME={interface}"] if interface else [])


def test_mindspeed_llm_gets_its_fused_norm_unless_flags_are_given():
    assert command()[-2:] == ["--", "--use-fused-rmsnorm"]
    assert command("train.steps=7")[-3:] == ["train.steps=7", "--", "--use-fused-rmsnorm"]
    assert command("--", "--swap-attention")[-2:] == ["--", "--swap-attention"]
    assert command("--")[-1] == "--"
    assert "--use-fused-rmsnorm" not in command(ENGINE="builtin")


@pytest.mark.parametrize("size", ["7b", "14b", "72b"])
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_long_steps_are_saved_every_fifty(size, stage):
    # a step of 528 packs takes about two minutes on 64 NPUs
    assert yaml.safe_load((EXAMPLES / f"long_vita_{size}" / f"{stage}.yaml").read_text())["checkpoint"]["save_every"] == 50


def test_an_npu_gets_its_settings():
    assert settings() == ASCEND


def test_a_setting_of_the_users_own_stands():
    own = {name: f"7{place}" for place, name in enumerate(ASCEND)}
    assert settings(**own) == own


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_other_devices_get_none_of_them(device):
    assert settings(DEVICE=device) == {}


@pytest.mark.parametrize("given, event, synchronise", [("90", "150", "150"), ("0", "0", None), ("007", "67", "67")])
def test_who_waits_for_a_collective_waits_longer_than_the_collective(given, event, synchronise):
    found = settings(HCCL_EXEC_TIMEOUT=given)
    assert (found["HCCL_EVENT_TIMEOUT"], found.get("ACL_DEVICE_SYNC_TIMEOUT")) == (event, synchronise)


def test_a_time_that_is_no_number_is_refused():
    done = start(HCCL_EXEC_TIMEOUT="2h")
    assert done.returncode == 2 and "HCCL_EXEC_TIMEOUT=2h; expected whole seconds" in done.stderr


def test_the_page_lists_what_the_scripts_set():
    page = (EXAMPLES.parent / "docs" / "guides" / "ascend_settings.md").read_text()
    assert dict(re.findall(r"^\| `(\w+)=(\S+)` \|", page, re.MULTILINE)) == ASCEND


@pytest.fixture
def trainer(tmp_path):
    """A stand-in for Python that says something on both channels, how many files it may open, and ends with 3."""
    script = tmp_path / "python"
    script.write_text("#!/bin/bash\necho files $(ulimit -Sn)\necho trouble >&2\nexit 3\n")
    script.chmod(0o755)
    return str(script)


def test_each_node_keeps_a_log(trainer, tmp_path):
    for node in ("3", "3", "5"):
        done = start(PYTHON=trainer, OUTPUT_ROOT=str(tmp_path), **{**SEVERAL_NODES, "NODE_RANK": node})
        assert done.returncode == 3 and re.fullmatch(r"files \d+\n", done.stdout) and done.stderr.endswith("trouble\n")
    logs = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert set(logs) == {"stage1-node3.log", "stage1-node5.log"}
    for name, starts in (("stage1-node3.log", 2), ("stage1-node5.log", 1)):
        assert [logs[name].count(text) for text in ("\nfiles ", "trouble\n", "TASK_QUEUE_ENABLE=2")] == [starts] * 3


def test_a_dry_run_keeps_none_and_the_folder_can_be_chosen(trainer, tmp_path):
    start(DRY_RUN="1", OUTPUT_ROOT=str(tmp_path))
    assert not (tmp_path / "logs").exists()
    start(PYTHON=trainer, OUTPUT_ROOT=str(tmp_path), LOG_DIR=str(tmp_path / "elsewhere"))
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["stage1-node0.log"]


def test_a_log_that_cannot_be_written_stops_the_start(trainer):
    done = start(PYTHON=trainer, LOG_DIR="/dev/null/logs")
    assert done.returncode == 2 and "cannot write the log /dev/null/logs/stage1-node0.log; LOG_DIR names another folder" in done.stderr


def test_an_npu_run_may_open_many_files(trainer, tmp_path):
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
    try:
        found = [start(PYTHON=trainer, OUTPUT_ROOT=str(tmp_path), DEVICE=device) for device in ("npu", "cuda")]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (now, most))
    enough = most == resource.RLIM_INFINITY or most >= 32768
    assert [done.stdout for done in found] == [f"files {32768 if enough else most}\n", "files 256\n"]
    assert enough or f"may open at most {most} files" in found[0].stderr
