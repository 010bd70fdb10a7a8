"""Makes the set that test_kept.py loads: a checkpoint in mid-run with the losses that follow, index and plan, recipes, an export.

Usage: python -m tests.compat.make FOLDER      FOLDER: new, or empty

The set in kept/ was written by version 0.1.0 and stays as it is: people have such files. Make another set beside it where a format changes
on purpose, so that both are tested. Every path in a set starts with /proc/self/cwd, the working directory of whoever reads it: the names
of index files depend on absolute paths, and these are the same in every checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

HERE = "/proc/self/cwd"
ROOT = Path(__file__).resolve().parents[2]
STOP, STEPS = 24, 32
VARIABLES = {name: f"{HERE}/{name.lower()}" for name in ("DATA_ROOT", "TOKENIZER", "OUTPUT_ROOT", "BASE_WEIGHTS", "INIT_FROM")}
"""What the kept recipes of the real sizes expand."""
QUESTION = ("<image>\nColour?", "media/red.png")
RECIPES = [
    *(f"tiny/{name}" for name in ("stage0", "stage1", "stage2", "stage3", "stage3_isolated", "stage4", "stage4_isolated")),
    *("long_vita_7b/stage1", "long_vita_14b/stage2", "long_vita_72b/stage3", "long_vita_72b/stage4_isolated"),
]
OWN_TOWER = {
    "name": "another-tower",
    "stage": 3,
    "model": {
        "preset": "7b",
        "vision": {"preset": "siglip_400m"},
        "projector": {"kind": "mlp_stride"},
        "language": {"rope_scaling": {"kind": "yarn", "factor": 4.0, "original_positions": 32768}},
    },
    "data": {"mixture": "${MIXTURE:-mixture.yaml}", "tiling": "anyres", "loss_weighting": "sample", "template": "vicuna"},
    "parallel": {"tp": 2, "cp": 4, "ulysses": 2},
    "train": {"lr": "1e-4", "modules": "projector, language"},
    "checkpoint": {"background": True, "keep": 0},
}
"""A recipe with the settings that the examples leave alone."""


def content() -> dict[str, Any]:
    """The run's recipe: the least model that has every part."""
    return {
        "name": "kept",
        "model": {
            "preset": "tiny",
            "vision": {"tile_size": 28, "patch_size": 7, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "ffn_hidden_size": 24},
            "projector": {"hidden_size": 16},
            "language": {
                "num_layers": 2, "hidden_size": 16, "num_heads": 4, "num_kv_heads": 2, "ffn_hidden_size": 24, "vocab_size": 320,
            },
        },
        "data": {
            "mixture": f"{HERE}/mixture.yaml",
            "tokenizer": f"{HERE}/tokenizer",
            "index": f"{HERE}/index",
            "seq_length": 128,
            "max_tiles": 2,
        },
        "train": {"steps": STEPS, "global_batch": 2, "lr": 3e-2, "min_lr": 3e-3, "warmup_fraction": 0.1, "precision": "fp32"},
        "checkpoint": {"directory": f"{HERE}/run"},
        "logging": {"tensorboard": False},
    }  # fmt: skip


def make_data() -> None:
    """Pictures that no resampling changes (one tile, or of one colour), texts, mixture and tokenizer, in the working directory."""
    from mindspeed_vita.data.tiny_tokenizer import train_tokenizer

    Path("media").mkdir()
    y, x = np.mgrid[0:28, 0:28]
    rows: list[dict[str, Any]] = []
    for number, (name, colour) in enumerate({"red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 50, 210)}.items()):
        shade = ((x // 7 * (3 + number) + y // 7) % 8 * 5)[..., None]
        Image.fromarray(np.clip(np.array(colour) + shade, 0, 255).astype(np.uint8)).save(f"media/{name}.png")
        Image.new("RGB", (56, 28), colour).save(f"media/{name}_wide.png")
        for picture in (name, f"{name}_wide"):
            asked, answer = {"role": "user", "content": "<image>\nColour?"}, {"role": "assistant", "content": f"It is {name}."}
            rows.append({"messages": [asked, answer], "images": [f"media/{picture}.png"]})
    for number in range(10):
        asked = {"role": "user", "content": f"Count to {number}."}
        rows.append({"messages": [asked, {"role": "assistant", "content": " ".join(map(str, range(number + 1)))}]})
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixture = {"dataset": {"all": {"ratio": 1, "data_paths": [f"{HERE}/data.jsonl"]}}}
    Path("mixture.yaml").write_text(yaml.safe_dump(mixture))
    train_tokenizer([message["content"] for row in rows for message in row["messages"]], 320, "tokenizer")


def make_run() -> None:
    """A run that stops half way, and the losses of one that does not."""
    from mindspeed_vita.config import load_recipe
    from mindspeed_vita.engine.loop import train

    Path("recipe.yaml").write_text(yaml.safe_dump(content(), sort_keys=False))
    train(load_recipe("recipe.yaml"), stop_at_step=STOP)
    train(load_recipe("recipe.yaml", ["checkpoint.directory=straight"]))
    lines = [json.loads(line) for line in Path("straight/metrics.jsonl").read_text().splitlines()]
    Path("curve.json").write_text(json.dumps({key: [line[key] for line in lines] for key in ("loss", "grad_norm", "lr")}, indent=1) + "\n")
    shutil.rmtree("straight")


def answer_of_transformers(folder: Path, inputs: Any = None) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What transformers computes for the question: the processor's tensors, unless they are given, and the logits."""
    from transformers import AutoModelForCausalLM, AutoProcessor

    if inputs is None:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        turn = [{"role": "user", "content": QUESTION[0]}]
        text = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        inputs = dict(processor(text=text, images=[QUESTION[1]], return_tensors="pt"))
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto")
    with torch.no_grad():
        return inputs, model(**inputs).logits


def make_export() -> None:
    """The checkpoint as transformers reads it, the logits for one question and the tokens of the answer."""
    from safetensors.torch import save_file

    from mindspeed_vita.cli.main import main
    from mindspeed_vita.inference.hf_generate import load_hf
    from mindspeed_vita.inference.request import ask

    assert main(["convert", "--from", "run", "--to", "hf", "--output", "export"]) == 0
    inputs, logits = answer_of_transformers(Path("export"))
    save_file({**inputs, "logits": logits}, "answer.safetensors")
    answer = load_hf("export").generate(ask(QUESTION[0], [QUESTION[1]], []), max_new_tokens=8)
    Path("answer.json").write_text(json.dumps({"token_ids": answer.token_ids}) + "\n")


def recipe_file(name: str) -> str:
    """Name in the set of a recipe of examples/."""
    return f"{name.replace('/', '-')}.yaml"


def make_recipes() -> None:
    """Recipes of every kind, and what each means with all defaults."""
    from mindspeed_vita.config import load_recipe, recipe_to_dict

    Path("recipes").mkdir()
    for name in RECIPES:
        shutil.copyfile(ROOT / "examples" / f"{name}.yaml", f"recipes/{recipe_file(name)}")
    Path("recipes/another_tower.yaml").write_text(yaml.safe_dump(OWN_TOWER, sort_keys=False))
    os.environ.update(VARIABLES)
    meant = {path.name: recipe_to_dict(load_recipe(path)) for path in sorted(Path("recipes").iterdir())}
    Path("recipes.json").write_text(json.dumps(meant, indent=1) + "\n")


def main() -> None:
    """Makes all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty; choose a new folder")
    os.chdir(folder)
    make_data()
    make_run()
    make_export()
    make_recipes()


if __name__ == "__main__":
    main()
