"""What the stage scripts start: waiting for late nodes, gloo's interface, MindSpeed-LLM's fused norm; and how often they save."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import config_from_args, parse_args

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
VARIABLES = ("DATA_ROOT", "TOKENIZER", "BASE_WEIGHTS", "OUTPUT_ROOT")
SEVERAL_NODES = {"NNODES": "8", "NODE_RANK": "3", "MASTER_ADDR": "node0"}


def command(*arguments: str, **variables: str) -> list[str]:
    """Words of the command that stage 1 of 14B would start; `true` stands for Python, so nothing is checked."""
    inherited = {name: value for name, value in os.environ.items() if not name.endswith("SOCKET_IFNAME")}
    given = {"DRY_RUN": "1", "PYTHON": "true", "DEVICE": "npu", "NPROC_PER_NODE": "8", **dict.fromkeys(VARIABLES, "/nowhere"), **variables}
    script = EXAMPLES / "long_vita_14b" / "stage1.sh"
    done = subprocess.run(["bash", str(script), *arguments], env={**inherited, **given}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


def test_torchrun_waits_two_hours_for_a_node_that_starts_late():
    words = command(**SEVERAL_NODES)
    config, _, _ = config_from_args(parse_args(words[words.index("torch.distributed.run") + 1 :]))
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
