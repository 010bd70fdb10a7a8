"""examples/launch/volcano.yaml: a stage as a Volcano job. No cluster was at hand; the pod's own command is run with a pod's variables."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def job() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "examples" / "launch" / "volcano.yaml").read_text())


def test_a_pod_starts_the_stage_as_the_node_that_it_is(job, tmp_path):
    (container,) = job["spec"]["tasks"][0]["template"]["spec"]["containers"]
    words = container["args"]
    assert (ROOT / words[-1]).is_file()
    (tmp_path / "stage.sh").write_text('echo "$NODE_RANK/$NNODES $MASTER_ADDR $*"\n')
    # what the plugins env and svc set; the names have the task's name in upper case
    variables = {"VC_TASK_INDEX": "1", "VC_WORKER_NUM": "2", "VC_WORKER_HOSTS": "vita-x-worker-0.vita-x,vita-x-worker-1.vita-x"}
    entry = (ROOT / "docker" / "Dockerfile.ascend").read_text()
    assert "ENTRYPOINT" in entry and "command" not in container, "the image's entry point stays"
    command = [*words[:-1], "stage.sh", "train.steps=7"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60)
    assert done.stdout == "1/2 vita-x-worker-0.vita-x train.steps=7\n", done.stderr
    assert job["spec"]["tasks"][0]["name"].upper() == "WORKER" and {"env", "svc"} <= set(job["spec"]["plugins"])


def test_the_job_starts_with_all_its_nodes_and_starts_again_as_a_whole(job):
    spec = job["spec"]
    (task,) = spec["tasks"]
    assert spec["minAvailable"] == task["replicas"] > 1
    assert {one["event"]: one["action"] for one in spec["policies"]} == {
        "PodFailed": "RestartJob",
        "PodEvicted": "RestartJob",
        "TaskCompleted": "CompleteJob",
    }
    pod = task["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and spec["maxRetry"] > 0
    # the run has the time that launch.sh gives its ranks
    (wait,) = set(re.findall(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-(\d+)", (ROOT / "examples" / "launch.sh").read_text()))
    assert pod["terminationGracePeriodSeconds"] == int(wait)


def test_every_volume_is_mounted_and_the_variables_lie_in_one(job):
    pod = job["spec"]["tasks"][0]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]} and mounts["shm"] == "/dev/shm"
    assert all(variable["value"].startswith(mounts["vita"] + "/") for variable in container["env"])
    assert {variable["name"] for variable in container["env"]} == {"DATA_ROOT", "TOKENIZER", "OUTPUT_ROOT"}
