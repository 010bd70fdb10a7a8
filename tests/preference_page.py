"""The files of docs/add_an_objective.md, cut out of the page and put into a folder with the tiny data set's pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from mindspeed_vita.config import Recipe
from tests.tiny_data import COLOURS

PAGE = Path(__file__).parents[1] / "docs" / "add_an_objective.md"


def block(language: str, holding: str) -> str:
    """The page's block of code with some words in it."""
    return next(text for text in re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL) if holding in text)


def write_page(tiny: Any, folder: Path, **parallel: int) -> Path:
    """Writes module, pairs, mixture and recipe; returns the recipe's path.

    Args:
        tiny: the tiny data set.
        folder: where to.
        parallel: sizes of the recipe's parallel section.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my_dpo.py").write_text(block("python", "register_objective"))
    shown = [json.loads(line) for line in block("json", "messages").splitlines()]
    names, rows = list(COLOURS), []
    for number, name in enumerate(names):
        for copy in range(4):
            for row, answer in zip(shown, (name, names[(number + 1 + copy % 3) % 4])):
                question, said = row["messages"]
                rows.append({"messages": [question, {**said, "content": f"It is {answer}."}], "images": [f"{name}{copy}.png"]})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = block("yaml", "plugins")
    mixture = yaml.safe_load(re.search(r"mixture: pairs.yaml +# (.*)", text)[1])  # type: ignore[index]
    (folder / "pairs.yaml").write_text(json.dumps(mixture))
    content = yaml.safe_load(text)
    content["data"].update(mixture=str(folder / "pairs.yaml"), media_root=str(tiny.folder), tokenizer=str(tiny.folder / "tokenizer"))
    content["checkpoint"].update(directory=str(folder / "run"), init_from=str(folder / "start"))
    content["parallel"] = parallel
    path = folder / "dpo.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def write_start(recipe: Recipe) -> None:
    """Fresh weights where the recipe starts from."""
    from mindspeed_vita.checkpoint.native import checkpoint
    from mindspeed_vita.engine.session import distributed
    from mindspeed_vita.platform import get_platform

    with distributed(recipe, get_platform()) as layout:
        from mindspeed_vita.parallel.build import build_model

        checkpoint.save_weights(recipe.checkpoint.init_from, build_model(recipe, layout), recipe)
