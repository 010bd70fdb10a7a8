"""What is said to a key of another trainer, to a key in the wrong section, and to a plugin that lies elsewhere."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from mindspeed_vita.config import Recipe, load_recipe, recipe_from_dict
from mindspeed_vita.config.aliases import ALIASES, _keys


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": {"epochs": 3}}, r"unknown key train\.epochs; here it is train\.steps, .* `vita data stats RECIPE` prints the steps"),
        ({"train": {"learning_rate": 1e-4}}, r"unknown key train\.learning_rate; here it is train\.lr"),
        ({"learning_rate": 1e-4}, r"unknown key learning_rate; here it is train\.lr"),
        ({"train": {"per-device-train-batch-size": 4}}, r"here it is train\.global_batch, the packs of one optimizer step"),
        ({"train": {"lr_scheduler_type": "cosine"}}, r"; there is no key: the schedule is a linear warm-up"),
        ({"lr": 1e-4}, r"unknown key lr; did you mean train\.lr\?"),
        ({"train": {"seq_length": 512}}, r"unknown key train\.seq_length; did you mean data\.seq_length\?"),
        ({"seed": 3}, r"did you mean data\.seed or train\.seed or eval\.seed\?"),
        ({"train": {"save_evry": 3}}, r"did you mean checkpoint\.save_every\?"),
        ({"train": {"qqqq": 3}}, r"unknown key train\.qqqq; known keys: beta1, "),
    ],
)
def test_a_wrong_key_gets_the_right_hint(content, message):
    with pytest.raises(ValueError, match=message):
        recipe_from_dict(content)


def test_every_alias_leads_to_a_key_and_hides_none():
    keys = set(_keys(Recipe, ""))
    for name, meant in ALIASES.items():
        named = set(re.findall(r"\b(?:train|data|checkpoint|parallel|logging|model|lora)(?:\.\w+)+", meant))
        assert named <= keys and (named or meant.startswith("no key")), (name, named - keys)
        assert name == name.lower() and not any(key.rpartition(".")[2] == name for key in keys), name


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe with a plugin; Python's path and its modules are put back afterwards."""
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(Path.cwd()))])
    before = set(sys.modules)

    def write(name: str, folder: str = "a") -> Path:
        path = tmp_path / folder / "recipe.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"plugins: [{name}]\n")
        return path

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_plugin_next_to_the_recipe_is_found_with_its_neighbours(recipe):
    path = recipe("vita_test_plugin")
    (path.parent / "vita_test_plugin.py").write_text("import vita_test_neighbour\n")
    (path.parent / "vita_test_neighbour.py").write_text("value = 7\n")
    assert load_recipe(path).plugins == ("vita_test_plugin",)
    assert sys.modules["vita_test_neighbour"].value == 7


def test_a_plugin_may_be_a_module_of_a_package(recipe):
    path = recipe("vita_test_package.towers")
    (path.parent / "vita_test_package").mkdir()
    (path.parent / "vita_test_package" / "__init__.py").touch()
    (path.parent / "vita_test_package" / "towers.py").touch()
    load_recipe(path)
    assert "vita_test_package.towers" in sys.modules


def test_a_plugin_that_is_not_there_or_cannot_run_says_what_to_do(recipe):
    path = recipe("vita_test_absent")
    with pytest.raises(ValueError, match=f"put it into {path.parent}, next to the recipe, or its folder on PYTHONPATH"):
        load_recipe(path)
    (path.parent / "vita_test_absent.py").write_text("import vita_test_missing_library\n")
    with pytest.raises(ValueError, match="No module named 'vita_test_missing_library'.*install what it imports"):
        load_recipe(path)


def test_two_plugins_of_one_name_are_not_confused(recipe):
    first, second = recipe("vita_test_twice", "a"), recipe("vita_test_twice", "b")
    for path in (first, second):
        (path.parent / "vita_test_twice.py").touch()
    load_recipe(first)
    with pytest.raises(ValueError, match="b/vita_test_twice.py, but .*a/vita_test_twice.py has the same name and is loaded; rename yours"):
        load_recipe(second)
