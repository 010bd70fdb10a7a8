"""The file of --deepspeed: what contradicts itself or the recipe is refused, and what it leaves out follows from the recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mindspeed_vita.config import Recipe, recipe_from_dict
from mindspeed_vita.integration.hf_trainer.deepspeed_file import decided_by_recipe, deepspeed_settings, hosted, zero_stage


def read(folder: Path, content: Any) -> dict[str, Any]:
    path = folder / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    found = deepspeed_settings(str(path))
    assert found is not None
    return found


def recipe(**train: Any) -> Recipe:
    return recipe_from_dict({"train": {"global_batch": 8, "clip_grad": 0.5, "precision": "bf16", **train}, "parallel": {"cp": 2}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"zero_optimization": {"stage": 9}}, "zero_optimization.stage is 9; expected 0, 1, 2 or 3"),
        ({"zero_optimization": {"stage": "3"}}, "zero_optimization.stage is '3'"),
        ({"zero_optimization": {"stage": None}}, "zero_optimization.stage is None"),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage is True"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}, "offload_optimizer is 'cpu'; expected an object with"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "gpu"}}}, "expected an object with .device.: .none."),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "offload_param needs stage 3, and stage is 2"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "offload_optimizer needs stage 1 or more, and stage is 0"),
        ({"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": False}}, "is False; leave it out: the export"),
        ({"zero_optimization": {"stage": 2}, "bf16": True}, "bf16 is True; expected an object"),
        ({"zero_optimization": {"stage": 2}, "zero_force_ds_cpu_optimizer": "no"}, "is 'no'; expected true or false"),
        ({"zero_optimization": {"stage": 2}, "tensor_parallel": {"autotp_size": 2}}, "autotp_size is 2; leave it out"),
        ('{"zero_optimization": {"stage": 2}, "zero_optimization": {"stage": 3}}', "the key 'zero_optimization' stands there twice"),
        ("[]", "expected an object with a section zero_optimization"),
        ("{", "no JSON"),
    ],
)
def test_a_file_that_contradicts_itself_is_one_message(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"--deepspeed \S+ds.json: .*{message}"):
        read(tmp_path, content)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ValueError, match=r"--deepspeed \S+ds.json: no JSON"):
        deepspeed_settings(str(tmp_path / "ds.json"))


def test_what_a_file_leaves_out_follows_from_the_recipe(tmp_path: Path) -> None:
    """DeepSpeed 0.19.8 would clip at a norm of 1 whatever the recipe says, as was seen with train.clip_grad=0.1."""
    settings = read(tmp_path, {"zero_optimization": {"stage": 3}, "gradient_clipping": "auto"})
    found = decided_by_recipe(settings, recipe(), 4)  # two data-parallel ranks of two processes each
    assert (found["train_micro_batch_size_per_gpu"], found["gradient_accumulation_steps"], found["train_batch_size"]) == (1, 4, 16)
    assert found["gradient_clipping"] == 0.5 and found["bf16"] == {"enabled": True} and found["fp16"] == {"enabled": False}
    assert zero_stage(found) == 3 and found["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    assert "bf16" not in settings, "the settings that were read stay as they are"
    assert decided_by_recipe(found, recipe(), 4) == found, "equal values are accepted"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient_clipping": 7.0}, "gradient_clipping is 7.0, and 0.5 follows from the recipe .train.clip_grad=0.5."),
        ({"train_batch_size": 3}, "train_batch_size is 3, and 16 follows from the recipe .train.global_batch=8 on 4 processes."),
        ({"train_micro_batch_size_per_gpu": 2}, "train_micro_batch_size_per_gpu is 2, and 1 follows"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps is 1, and 4 follows"),
        ({"bf16": {"enabled": False}}, "bf16.enabled is False, and True follows from the recipe .train.precision=bf16."),
        ({"fp16": {"enabled": True}}, "fp16.enabled is True, and False follows"),
    ],
)
def test_a_file_that_contradicts_the_recipe_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    settings = read(tmp_path, {"zero_optimization": {"stage": 2}, **changes})
    with pytest.raises(ValueError, match=f"--deepspeed: {message}.*or leave them out of the file"):
        decided_by_recipe(settings, recipe(), 4)


def test_what_is_kept_elsewhere_is_said_with_its_place(tmp_path: Path) -> None:
    sections = {"offload_optimizer": {"device": "nvme"}, "offload_param": {"device": "cpu"}}
    assert hosted(read(tmp_path, {"zero_optimization": {"stage": 3, **sections}})) == "optimizer on NVMe and weights in host memory"
    assert hosted(read(tmp_path, {"zero_optimization": {"stage": 3, "offload_optimizer": None}})) == ""
