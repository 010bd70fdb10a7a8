"""What generate, chat, serve and eval have in common: which checkpoints they take."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest
import yaml

from mindspeed_vita.cli.answering import add_checkpoint_arguments, check_checkpoint
from mindspeed_vita.cli.main import main
from mindspeed_vita.config import recipe_to_dict
from tests.tiny_data import tiny

__all__ = ["tiny"]


def test_the_address_of_a_run_in_a_store_is_fetched(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_to_dict(tiny.recipe(tmp_path / "run", train={"steps": 1}))))
    assert main(["train", str(recipe), f"checkpoint.store=file://{tmp_path}/store"]) == 0
    shutil.rmtree(tmp_path / "run")

    parser = argparse.ArgumentParser()
    add_checkpoint_arguments(parser)
    parser.set_defaults(prefill_chunk=1)
    arguments = parser.parse_args([f"file://{tmp_path}/store"])
    folder = check_checkpoint(arguments)
    assert folder.name == "step_0000001" and folder.is_relative_to(tmp_path / "cache") and (folder / "state.json").is_file()
    assert arguments.checkpoint == str(folder), "what loads the weights later sees the folder too"
