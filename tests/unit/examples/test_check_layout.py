"""check_layout.py on made-up data folders: complete, without a file, without a picture, with a broken row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

MIXTURES = Path(__file__).resolve().parents[3] / "examples" / "mixtures"
ROW = {"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "!"}], "images": ["datasets/pictures/a.jpg"]}


@pytest.fixture
def root(tmp_path) -> Path:
    """DATA_ROOT with one row in every file of stage 1, and its picture."""
    for entry in yaml.safe_load((MIXTURES / "stage1.yaml").read_text())["dataset"].values():
        for path in entry["data_paths"] if entry["ratio"] else ():
            file = Path(path.replace("${DATA_ROOT}", str(tmp_path)))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(ROW) + "\n")
    (tmp_path / "datasets" / "pictures").mkdir()
    (tmp_path / "datasets" / "pictures" / "a.jpg").touch()
    return tmp_path


def check(*arguments: str, data_root: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DATA_ROOT": data_root, "PYTHONPATH": str(MIXTURES.parents[1])}
    command = [sys.executable, str(MIXTURES / "check_layout.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_a_complete_layout_passes(root):
    done = check("--stage", "1", data_root=str(root))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stage 1: 5 of 5 sources complete" in done.stdout and "LLaVA-ReCap: 3 of 3 files, 0 of 3 media missing" in done.stdout


def test_what_is_missing_is_named_with_its_home(root):
    (root / "datasets/jsonl/HuggingFaceM4/Docmatix/data.jsonl").unlink()
    recap = root / "datasets/jsonl/lmms-lab/LLaVA-ReCap-558K/data.jsonl"
    recap.write_text(json.dumps([ROW, {**ROW, "images": ["datasets/pictures/gone.jpg"], "videos": None}]))
    (root / "datasets/jsonl/Lin-Chen/ShareGPT4V/sharegpt4v_instruct_gpt4-vision_cap100k.jsonl").write_text("{broken\n")
    done = check("--stage", "1", "--data-root", str(root))
    assert done.returncode == 1 and done.stdout.splitlines()[-1] == "FAIL: something is missing"
    assert "stage 1: 2 of 5 sources complete" in done.stdout
    assert "file datasets/jsonl/HuggingFaceM4/Docmatix/data.jsonl" in done.stdout and "Long-VITA-Training-Data" in done.stdout
    assert "medium datasets/pictures/gone.jpg: no such file" in done.stdout and "lmms-lab/LLaVA-ReCap-558K" in done.stdout
    assert "unreadable datasets/jsonl/Lin-Chen" in done.stdout


def test_later_stages_need_more(root):
    done = check(data_root=str(root))
    assert "stage 2: 5 of 20 sources complete" in done.stdout
    assert "lmms-lab/LLaVA-Video-178K_0_30_s_cap: 0 of 2 files" in done.stdout
    assert done.returncode == 1


def test_without_a_folder_it_says_what_to_give():
    done = check()
    assert done.returncode == 2 and "set DATA_ROOT" in done.stderr


def test_every_source_has_a_home():
    homes = yaml.safe_load((MIXTURES / "homes.yaml").read_text())["media"]
    names = yaml.safe_load((MIXTURES / "stage4.yaml").read_text())["dataset"]
    assert all(any(name == key or name.startswith(f"{key}_") for key in homes) for name in names)
