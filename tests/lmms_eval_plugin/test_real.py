"""The real lmms-eval 0.7.3 runs tiny tasks with our model, in the environment of scripts/evaluators_env.sh: alone, and by two processes.

Its calls and our answers are those of calls.json, which the unit tests give to the model class without lmms-eval.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.lmms_eval_plugin.record import merged

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = Path(os.environ.get("VITA_LMMS_EVAL", ROOT / ".venv" / "envs" / "lmms-eval-0.7.3"))
PYTHON = ENVIRONMENT / "bin" / "python"
GENERATION, ALL = "vita_open,vita_messages,vita_film", "vita_open,vita_film,vita_choice"

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason=f"{ENVIRONMENT} is missing; bash scripts/evaluators_env.sh makes it")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lmms") / "world"
    run([str(PYTHON), "-m", "tests.lmms_eval_plugin.world", str(folder)], folder)
    return folder


def run(command: list[str], world: Path) -> str:
    settings = {
        "OMP_NUM_THREADS": "1", "DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(world / "hf"),
        "VITA_FILM": str(world / "film"), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def evaluate(world: Path, launch: list[str], weights: str, tasks: str, *more: str) -> str:
    options = ["--model", "long_vita", "--model_args", weights, "--include_path", str(world / "tasks"), "--tasks", tasks]
    saved = ["--batch_size", "1", "--log_samples", "--output_path", str(world / "out"), "--verbosity", "DEBUG"]
    return run([*launch, *options, *saved, *more], world)


def recorded_calls() -> list[dict]:
    content = json.loads((Path(__file__).parent / "calls.json").read_text())
    return [call for call in content["calls"] if call["call"] != "init"]


def test_the_recorded_calls_are_those_of_today(world: Path) -> None:
    for name, tasks, more in (("chat", GENERATION, ()), ("simple", ALL, ("--force_simple",))):
        record = [str(PYTHON), "-m", "tests.lmms_eval_plugin.record", str(world / f"{name}.json")]
        said = evaluate(world, record, f"pretrained={world / 'export'},cache_memory=8MB", tasks, *more)
        assert all(task in said for task in tasks.split(","))
    found = [call for call in merged([world / "chat.json", world / "simple.json"])["calls"] if call["call"] != "init"]
    recorded = recorded_calls()
    assert [call["requests"] for call in found] == [call["requests"] for call in recorded]
    assert [call["results"] for call in found if call["call"] == "generate_until"] == [
        call["results"] for call in recorded if call["call"] == "generate_until"
    ]


def test_two_processes_share_native_weights(world: Path) -> None:
    launch = [str(PYTHON), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launch += ["-m", "mindspeed_vita.evaluation.lmms_eval"]
    evaluate(world, launch, f"pretrained={world / 'run'},tp=2,cache_memory=8MB", ALL, "--force_simple")
    answers = {}
    for path in (world / "out").rglob("*samples_vita_open.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        answers = {row["doc_id"]: row["filtered_resps"] for row in rows}
    assert len(answers) == 5, "every row once, whichever process had it"
    recorded = next(call for call in recorded_calls() if call["class"] == "LongVita")
    pairs = zip(recorded["requests"], recorded["results"])
    expected = {request[-3]: result.strip() for request, result in pairs if request[-2] == "vita_open"}
    assert {number: answer.strip() for number, answer in answers.items()} == expected
