"""Recipes: order of defaults, overrides, and a clear refusal of every wrong key or value."""

from pathlib import Path

import pytest
import yaml

from mindspeed_vita.config import Recipe, load_recipe, load_yaml, model_config_from_dict, recipe_from_dict, recipe_to_dict


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_later_settings_win(tmp_path: Path) -> None:
    path = write(tmp_path, "stage: 2\nmodel: {preset: 14b}\ntrain: {lr: 2e-5}\n")
    recipe = load_recipe(path, ["train.steps=7", "train.modules=[projector]"])
    assert recipe.data.seq_length == 16384  # the stage
    assert recipe.model.language.num_layers == 48  # the preset
    assert recipe.train.lr == 2e-5  # the file
    assert recipe.train.steps == 7 and recipe.train.modules == ("projector",)  # the overrides


def test_recipe_survives_json_like_round_trip() -> None:
    recipe = recipe_from_dict({"stage": 4, "model": {"preset": "72b"}, "parallel": {"tp": 8, "cp": 8}})
    plain = yaml.safe_load(yaml.safe_dump(recipe_to_dict(recipe)))
    assert recipe_from_dict(plain) == recipe
    assert model_config_from_dict(plain["model"]) == recipe.model


def test_environment_variables_expand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITA_TEST_ROOT", "/data")
    monkeypatch.setenv("VITA_TEST_SIZE", "7b")
    assert load_recipe(write(tmp_path, "model: {preset: '${VITA_TEST_SIZE}'}")).model.language.num_layers == 28
    path = write(tmp_path, "data: {mixture: '${VITA_TEST_ROOT}/mix.yaml'}\ncheckpoint: {directory: '${VITA_NOT_SET:-runs}/a'}\n")
    recipe = load_recipe(path)
    assert recipe.data.mixture == "/data/mix.yaml" and recipe.checkpoint.directory == "runs/a"


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("train: {stps: 3}", [], r"unknown key train\.stps; did you mean train\.steps"),
        ("trian: {steps: 3}", [], r"unknown key trian; did you mean train"),
        ("train: {steps: many}", [], r"train\.steps='many'; expected a whole number"),
        ("train: {steps: true}", [], r"train\.steps=True; expected a whole number"),
        ("data: {resets: 1}", [], r"data\.resets=1; expected true or false"),
        ("train: 5", [], r"train must be a section"),
        ("stage: [1]", [], r"stage=\[1\]; expected a whole number"),
        ("model: {preset: [a]}", [], r"model\.preset=\['a'\]; expected text"),
        ("stage: 5", [], r"stage=5; expected one of"),
        ("model: {preset: 9b}", [], r"model\.preset='9b'; expected one of"),
        ("- a list", [], "expected a mapping"),
        ("a: [", [], "not valid YAML"),
        ("", ["train.lr"], "expected section.key=value"),
        ("", ["train.lr.x=1"], r"train\.lr=\{'x': 1\}; expected a number"),
        ("data: {mixture: '${VITA_NOT_SET}'}", [], "needs the environment variable VITA_NOT_SET"),
    ],
)
def test_wrong_recipe_is_refused_by_name(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(write(tmp_path, text), overrides)


def test_missing_recipe_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.yaml: no such file"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_every_field_is_documented() -> None:
    """The recipe is the user's reference: a line of documentation stands under each field."""
    import ast

    import mindspeed_vita.config.recipe as module

    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    for node in (item for item in tree.body if isinstance(item, ast.ClassDef)):
        for field, after in zip(node.body, [*node.body[1:], None]):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant), f"{node.name}.{ast.unparse(field.target)}"
    assert Recipe().name == "run"


def test_a_key_given_twice_is_refused_and_a_merge_may_be_overruled(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("train:\n  steps: 3\n  seed: 1\n  steps: 4\n")
    with pytest.raises(ValueError, match=r"recipe .*recipe\.yaml: line 4: found the key 'steps' again, first in line 2; keep one"):
        load_recipe(path)
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: *a, y: 5}\n"
    assert load_yaml(text) == yaml.safe_load(text) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 1, "y": 5}}
