"""The stage scripts with ENGINE=mindspeed-llm: real MindSpeed-LLM trains stage 1, and stage 2 takes the weights over from what it saved."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from mindspeed_vita.config import recipe_to_dict
from tests.integration.mindspeed_run import MindSpeed
from tests.tiny_data import TinyData

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "long_vita_14b"


def test_stage_1_hands_over_to_stage_2(mindspeed: MindSpeed, tiny: TinyData, tmp_path: Path):
    model = recipe_to_dict(tiny.recipe(tmp_path))["model"]
    small = [f"model.{part}={json.dumps(model[part])}" for part in ("vision", "projector", "language")]
    small += ["model.preset=tiny", "data.seq_length=128", "data.max_tiles=2", "data.num_workers=0", "data.media_root=", "parallel.tp=1"]
    small += ["train.recompute=none", "train.global_batch=2", "train.steps=2", "logging.tensorboard=false"]
    paths = {"DATA_ROOT": tiny.folder, "TOKENIZER": tiny.folder / "tokenizer", "MIXTURE": tiny.folder / "mixture.yaml"}
    variables = {name: str(path) for name, path in paths.items()} | {"OUTPUT_ROOT": str(tmp_path)}
    variables |= {"BASE_WEIGHTS": "-", "DEVICE": "npu", "NPROC_PER_NODE": "1", "PYTHON": mindspeed.python}

    def run(stage: str, *arguments: str) -> str:
        command = ["bash", str(EXAMPLES / f"{stage}.sh"), *small, *arguments]
        done = subprocess.run(command, env=mindspeed.environment(**variables), cwd=tmp_path, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    run("stage1", "checkpoint.init_from=")
    assert (tmp_path / "stage1" / "latest_checkpointed_iteration.txt").read_text() == "2"
    text = run("stage2")
    assert f"loading checkpoint from {tmp_path / 'stage1'} at iteration 2" in text
    assert f"successfully loaded checkpoint from {tmp_path / 'stage1'} [ t 1/1, p 1/1 ] at iteration 0" in text
    assert (tmp_path / "stage2" / "latest_checkpointed_iteration.txt").read_text() == "2"
