"""An exported folder under the transformers in VITA_TRANSFORMERS_OVERLAY: the same ids, logits, answer and rotary tables as here.

The overlay is a folder made by `pip install --target FOLDER transformers==4.57.6`; other versions need other dependencies, which it holds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mindspeed_vita.checkpoint.hf_config import hf_config
from mindspeed_vita.checkpoint.hf_export import export_hf
from mindspeed_vita.config import ModelConfig, RopeScalingConfig
from mindspeed_vita.data.templates import get_template
from mindspeed_vita.inference.hf_generate import load_hf
from mindspeed_vita.ops.rotary import RotaryTables
from tests.tiny_checkpoint import TINY, make_tokenizer, random_weights, tiny_recipe

OVERLAY = os.environ.get("VITA_TRANSFORMERS_OVERLAY", "")
IDS = {"bos": 0, "eos": 0, "pad": 0, "image": 1, "video": 2, "patch": 3}
SHORT, LONG = (1.0, 1.1, 1.2, 1.3), (1.0, 2.0, 4.0, 8.0)
ROPES = {
    "none": RopeScalingConfig(),
    "linear": RopeScalingConfig(kind="linear", factor=4.0),
    "ntk": RopeScalingConfig(kind="ntk", factor=8.0),
    "yarn": RopeScalingConfig(kind="yarn", factor=4.0, original_positions=1024),
    "yarn-set": RopeScalingConfig(kind="yarn", factor=4.0, original_positions=1024, beta_fast=16.0, attention_factor=1.25),
    # the factor is not the ratio of the two lengths, which some versions would take for it
    "longrope": RopeScalingConfig(kind="longrope", factor=32.0, original_positions=1024, short_factor=SHORT, long_factor=LONG),
}
POSITIONS = [[0, 1, 5, 900], [0, 1, 900, 4000]]


OTHER = replace(
    TINY,
    vision=replace(TINY.vision, tower="siglip", normalization="siglip", qk_norm=True, norm="rms_norm"),
    projector=replace(TINY.projector, kind="mlp_newline"),
)


@pytest.mark.parametrize(("model", "data"), [(TINY, {}), (OTHER, {"tiling": "anyres", "template": "llama3"})], ids=["usual", "other-parts"])
@pytest.mark.skipif(
    not (Path(OVERLAY) / "transformers").is_dir() or not OVERLAY, reason="no transformers in the folder of VITA_TRANSFORMERS_OVERLAY"
)
def test_another_transformers_computes_what_this_one_does(tmp_path: Path, model: ModelConfig, data: dict[str, Any]) -> None:
    tokenizer, recipe = make_tokenizer(tmp_path / "tokenizer"), tiny_recipe(model, **data)
    tokenizer.add_tokens(list(get_template(recipe.data.template).special_tokens), special_tokens=True)
    tokenizer.add_tokens([get_template(recipe.data.template).pad_token], special_tokens=True)
    export_hf(random_weights(model), recipe, tmp_path / "out", tokenizer=tokenizer)
    question = _question(tmp_path)
    (tmp_path / "question.json").write_text(json.dumps(question))
    environment = {**os.environ, "PYTHONPATH": OVERLAY, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    script = Path(__file__).with_name("other_transformers.py")
    arguments = [tmp_path / "out", tmp_path / "question.json", tmp_path / "found.pt"]
    done = subprocess.run(
        [sys.executable, script, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result = torch.load(tmp_path / "found.pt")
    found = result["found"]
    assert list(Path(OVERLAY).glob(f"transformers-{result['version']}.dist-info"))

    ours = load_hf(tmp_path / "out")
    inputs = ours.processor(text=question["prompt"], images=question["images"], videos=question["videos"], return_tensors="pt")
    assert torch.equal(found["input_ids"], inputs["input_ids"])
    with torch.no_grad():
        logits = ours.model(**inputs).logits
    assert logits.abs().max() > 1
    # Measured 0.0 with 4.57.6 and 5.0.0; 1e-5 leaves room for another order of summation.
    torch.testing.assert_close(found["logits"], logits, rtol=0, atol=1e-5)
    assert torch.equal(found["tokens"], ours.model.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :])
    for name, scaling in ROPES.items():
        for positions in POSITIONS:
            tables = RotaryTables(replace(TINY.language, rope_scaling=scaling))(torch.tensor(positions), positions[-1] + 1)
            torch.testing.assert_close(found[f"{name}/{positions[-1]}"], torch.stack(tables), rtol=0, atol=1e-6)


def _question(folder: Path) -> dict[str, Any]:
    draw = np.random.default_rng(5)
    Image.fromarray(draw.integers(0, 256, (40, 80, 3), dtype=np.uint8)).save(folder / "wide.png")
    (folder / "frames").mkdir()
    for number in range(3):
        Image.fromarray(draw.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / "frames" / f"{number}.png")
    models = {name: replace(TINY, language=replace(TINY.language, rope_scaling=scaling)) for name, scaling in ROPES.items()}
    return {
        "prompt": "<|im_start|>user\n<image>\nand <video>\nWhat?<|im_end|>\n<|im_start|>assistant\n",
        "images": [str(folder / "wide.png")],
        "videos": [str(folder / "frames")],
        "ropes": {name: hf_config(model, token_ids=IDS, dtype="float32") for name, model in models.items()},
        "positions": POSITIONS,
    }
