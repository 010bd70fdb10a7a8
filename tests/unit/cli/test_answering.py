"""What generate, chat, serve and eval have in common: which checkpoints they take."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import yaml

from mindspeed_vita.cli import serve
from mindspeed_vita.cli.answering import add_checkpoint_arguments, check_checkpoint
from mindspeed_vita.cli.main import main
from mindspeed_vita.config import recipe_to_dict
from mindspeed_vita.engine import chosen_step
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


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("generate", [], "give either --prompt TEXT or --batch FILE"),
        ("generate", ["--batch", "a", "--output", "b", "--image", "c"], "--image and --video go with --prompt"),
        ("serve", ["--port", "70000"], "--port is 70000"),
        ("eval choice", ["file.tsv", "--pass", "2"], "--pass is 2"),
    ],
)
def test_what_is_asked_is_looked_at_before_an_address_is_fetched(
    command: str, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint has hundreds of gigabytes. Here there is none."""
    assert main([*command.split(), f"file://{tmp_path}/store", *options]) == 2
    assert message in capsys.readouterr().err


def test_the_model_of_an_address_is_served_under_the_name_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is a step's folder. Clients would have to know its number."""
    served: list[str] = []
    monkeypatch.setattr(chosen_step, "choose_step", lambda address: tmp_path)
    monkeypatch.setattr(serve, "open_session", lambda arguments: MagicMock())
    monkeypatch.setattr(serve, "_serve", lambda session, settings, bound, arguments: served.append(settings.model) or bound.close())
    assert main(["serve", "s3://bucket/runs/general", "--port", "0"]) == 0
    assert served == ["general"]
