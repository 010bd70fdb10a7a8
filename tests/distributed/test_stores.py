"""Two processes, data and checkpoints on a local S3 server: the run is killed, its folder is deleted, and it goes on bit for bit."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import yaml

from mindspeed_vita.config import recipe_to_dict
from tests import s3_server
from tests.distributed.test_kill import RUN, launch, wait_for_step
from tests.pools import Pools
from tests.tiny_data import TinyData, read_metrics


@pytest.mark.distributed
@pytest.mark.slow
def test_a_killed_run_without_its_folder_goes_on_from_s3(
    pools: Pools, tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server.running() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        sections = {"train": {"steps": 24, "lr": 2e-3, "min_lr": 2e-4}}
        pools("installed").run(RUN, dp=2, content=recipe_to_dict(tiny.recipe(tmp_path / "straight", **sections)))
        directory, path = tmp_path / "run", tmp_path / "recipe.yaml"
        checkpoint = {"save_every": 3, "store": f"s3://{s3_server.BUCKET}/runs/a"}
        for file in (tiny.folder / "data.jsonl", *tiny.folder.glob("*.png")):
            server.put(f"data/{file.name}", file.read_bytes())
        (tmp_path / "mixture.yaml").write_text(json.dumps({"dataset": {"all": {"data_paths": [f"s3://{s3_server.BUCKET}/data/*.jsonl"]}}}))
        data = {"mixture": str(tmp_path / "mixture.yaml"), "store_cache": str(tmp_path / "cache"), "num_workers": 1}
        path.write_text(yaml.safe_dump(recipe_to_dict(tiny.recipe(directory, **sections, checkpoint=checkpoint, data=data))))
        processes = launch(path, background=True)
        wait_for_step(processes, directory, 4)
        deadline = time.monotonic() + 120
        while not any(key.endswith("/checksums.json") for key in server.keys("runs/a/")):
            assert time.monotonic() < deadline and processes[0].poll() is None, processes[0].communicate()
            time.sleep(0.01)
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()
        ranks = {key.rpartition("rank_")[2] for key in server.keys("runs/a/") if "/optimizer/" in key}
        assert ranks == {"00000.safetensors", "00001.safetensors"}, "each rank's own files"
        shutil.rmtree(directory)
        shutil.rmtree(tmp_path / "cache" / "media")
        server.put("runs/a/step_0000023/weights/rank_00000.safetensors", b"the first of many")
        last = launch(path)
        errors = []
        for process in last:
            errors.append(process.communicate(timeout=300)[1])
            assert process.returncode == 0, errors
        assert "passed over s3://bucket/runs/a/step_0000023: it was never sent whole" in errors[0]
        assert "was fetched from s3://bucket/runs/a" in errors[0] and "step_0000024 is in s3://bucket/runs/a" in errors[0]
        assert read_metrics(directory) == read_metrics(tmp_path / "straight")
