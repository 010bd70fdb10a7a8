"""What version 0.1.0 wrote is still good: its checkpoint continues, its index is taken, its recipes mean the same, its export loads."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Iterator

import pytest
import torch
from safetensors.torch import load_file

from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.cli.main import main
from mindspeed_vita.config import load_recipe, recipe_to_dict
from mindspeed_vita.data.media.decoder import close_decoders
from mindspeed_vita.data.tokenizer import load_tokenizer
from mindspeed_vita.engine.loop import train
from tests.compat.make import QUESTION, RECIPES, STEPS, STOP, VARIABLES, answer_of_transformers, recipe_file
from tests.tiny_data import read_metrics

KEPT = Path(__file__).resolve().parent / "kept"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the set as the working directory, which its paths start from."""
    shutil.copytree(KEPT, tmp_path / "kept")
    os.utime(tmp_path / "kept" / "data.jsonl")  # a fresh checkout knows no times either
    monkeypatch.chdir(tmp_path / "kept")
    close_decoders()  # those of earlier tests have another working directory
    yield tmp_path / "kept"
    close_decoders()


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time of writing and content."""
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_the_checkpoint_continues_as_if_never_stopped_and_the_index_is_taken(kept: Path) -> None:
    curve, index = json.loads((kept / "curve.json").read_text()), snapshot(kept / "index")
    assert len(index) > 5
    result = train(load_recipe("recipe.yaml"))
    assert (result.step, len(curve["loss"])) == (STEPS, STEPS)
    # the tolerances of the golden curve: kernels for other vector widths sum in another order
    assert read_metrics(kept / "run") == pytest.approx(curve["loss"], rel=1e-4)
    assert read_metrics(kept / "run", "grad_norm") == pytest.approx(curve["grad_norm"], rel=1e-3)
    assert read_metrics(kept / "run", "lr") == curve["lr"]
    assert curve["loss"][STOP] != curve["loss"][STOP - 1]
    assert snapshot(kept / "index") == index


@pytest.mark.parametrize("name", ["another_tower.yaml", *map(recipe_file, RECIPES)])
def test_a_recipe_means_what_it_meant(name: str, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in VARIABLES.items():
        monkeypatch.setenv(variable, value)
    for variable in ("VITA_OUT", "MIXTURE"):
        monkeypatch.delenv(variable, raising=False)
    meant = json.loads((kept / "recipes.json").read_text())[name]
    assert chosen(recipe_to_dict(load_recipe(Path("recipes") / name)), meant) == meant


def chosen(found: Any, meant: Any) -> Any:
    """The keys that there were: later ones may have been added."""
    if not isinstance(meant, dict):
        return found
    return {key: chosen(found[key], value) for key, value in meant.items() if key in found}


def test_transformers_loads_the_export_and_finds_the_same_logits(kept: Path) -> None:
    known = load_file("answer.safetensors")
    logits = known.pop("logits")
    processed, found = answer_of_transformers(kept / "export")
    assert processed.keys() == known.keys() and torch.equal(processed["input_ids"], known["input_ids"])
    for name, tensor in known.items():
        torch.testing.assert_close(processed[name], tensor)
    # a forward pass in fp32 over two layers; kernels for other vector widths sum in another order
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)


def test_an_export_keeps_its_own_configuration_after_our_code_read_its_tokenizer(kept: Path) -> None:
    from transformers import AutoConfig

    load_tokenizer(kept / "export")
    config = AutoConfig.from_pretrained(kept / "export", trust_remote_code=True)
    assert "transformers_modules" in type(config).__module__


def test_convert_reads_the_export_and_the_checkpoint(kept: Path) -> None:
    assert main(["convert", "--from", "export", "--to", "native", "--output", "back"]) == 0
    assert main(["convert", "--from", "run", "--to", "hf", "--output", "again"]) == 0
    weights, back = native.read_full_weights("run")[0], native.read_full_weights("back")[0]
    assert weights.keys() == back.keys() and all(torch.equal(weights[name], back[name]) for name in weights)
    old, new = (load_file(f"{folder}/model.safetensors") for folder in ("export", "again"))
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
    # the kept weights under today's modelling code
    known = load_file("answer.safetensors")
    logits = known.pop("logits")
    torch.testing.assert_close(answer_of_transformers(kept / "again", known)[1], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("checkpoint", ["run", "export"])
def test_generate_gives_the_same_answer(kept: Path, checkpoint: str) -> None:
    from mindspeed_vita.inference.generate import load_generator
    from mindspeed_vita.inference.hf_generate import load_hf
    from mindspeed_vita.inference.request import ask

    generator = load_generator(checkpoint) if checkpoint == "run" else load_hf(checkpoint)
    answer = generator.generate(ask(QUESTION[0], [QUESTION[1]], []), max_new_tokens=8)
    assert list(answer.token_ids) == json.loads((kept / "answer.json").read_text())["token_ids"]
