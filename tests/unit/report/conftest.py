"""Two runs, the second from the weights of the first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mindspeed_vita.cli.main import main
from mindspeed_vita.config import recipe_to_dict
from tests.tiny_data import tiny

__all__ = ["tiny"]


@pytest.fixture(scope="session")
def runs(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of "align", with a held-out loss and a gate, and of "general", which starts from it."""
    folder = tmp_path_factory.mktemp("runs")
    held_out = {"mixture": str(tiny.folder / "held_out.yaml"), "media_root": str(tiny.folder), "every": 2, "packs": 1, "gate": 100.0}
    for name, start, steps in (("align", "", 4), ("general", str(folder / "align"), 3)):
        recipe = recipe_to_dict(tiny.recipe(folder / name, train={"steps": steps}, eval=held_out, logging={"openmetrics": True}))
        recipe["name"] = name
        recipe["data"]["mixture"] = str(tiny.folder / "two_sources.yaml")
        recipe["checkpoint"]["init_from"] = start
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        assert main(["train", str(folder / f"{name}.yaml")]) == 0
    return folder / "align", folder / "general"


def write_lines(path: Path, *lines: dict[str, Any] | str) -> None:
    """A JSONL file of objects, and of texts as they are."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
