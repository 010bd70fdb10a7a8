"""Recipes: order of defaults, overrides, and a clear refusal of every wrong key or value."""

import dataclasses
import pickle
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union

import pytest
import yaml

from mindspeed_vita.config import (
    Recipe,
    load_recipe,
    load_yaml,
    model_config_from_dict,
    recipe_from_dict,
    recipe_of_checkpoint,
    recipe_to_dict,
)


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
        ("a: [", [], r"recipe.yaml: not valid YAML: line 1, column 5: while parsing a flow node, expected the node content"),
        ("", ["train.lr"], "expected section.key=value"),
        ("", ["train.lr.x=1"], r"train\.lr=\{'x': 1\}; expected a number"),
        ("data: {mixture: '${VITA_NOT_SET}'}", [], "needs the environment variable VITA_NOT_SET"),
    ],
)
def test_wrong_recipe_is_refused_by_name(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(write(tmp_path, text), overrides)


def test_all_problems_of_a_file_come_at_once(tmp_path: Path) -> None:
    text = "stage: 9\ntrain: {lr: fast, precision: FP32, epochs: 2, modules: [vision, tower]}\n"
    text += "data: {mixture: '${VITA_NOT_SET}', resets: 1}\n"
    with pytest.raises(ValueError) as error:
        load_recipe(write(tmp_path, text), ["parallel.tp=0", "data.packing=samesource"])
    assert str(error.value).startswith(f"{tmp_path / 'recipe.yaml'}: 9 problems: (1) ")
    for message in (
        "stage=9; expected one of 1, 2, 3, 4",
        "train.lr='fast'; expected a number, found str",
        "train.precision='FP32'; expected one of bf16, fp32; did you mean fp32?",
        "unknown key train.epochs; here it is train.steps",
        "train.modules[1]='tower'; expected one of vision, projector, language",
        "data.mixture='${VITA_NOT_SET}' needs the environment variable VITA_NOT_SET; set it or override data.mixture",
        "data.resets=1; expected true or false, found int",
        "parallel.tp=0 (from the command line); expected at least 1",
        "data.packing='samesource' (from the command line); expected one of same_source, cross_source; did you mean same_source?",
    ):
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": {1: 2}}, "recipe: unknown key train.1; known keys: beta1, "),
        ({3: 4}, "recipe: unknown key 3; known keys: checkpoint, "),
        ({"train": {"modules": ["${VITA_NOT_SET}"]}}, "recipe: train.modules='${VITA_NOT_SET}' needs the environment variable VITA_"),
        ({"train": {"modules": ["tower"]}}, "recipe: train.modules[0]='tower'; expected one of vision, projector, language"),
        ({"train": {"modules": []}}, "recipe: train.modules=[]; expected at least one of vision, projector, language"),
        ({"data": {"max_fps": float("inf")}}, "recipe: data.max_fps=inf; expected more than 0 and finite"),
        ({"data": {"decode_memory": 7}}, "recipe: data.decode_memory=7; expected at least 268435456"),
        ({"model": {"vision": {"preset": "vit"}}}, "recipe: model.vision.preset='vit'; expected one of intern_vit_300m, intern_vit_6b, "),
        ({"plugins": None}, "recipe: plugins=None; expected a list"),
        ({"plugins": [7]}, "recipe: plugins: '7' cannot be imported"),
    ],
)
def test_one_problem_is_one_sentence(content: dict[Any, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        recipe_from_dict(content)
    assert str(error.value).startswith(message)


def test_a_saved_model_section_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^model section: model must be a section, found \['tiny'\]$"):
        model_config_from_dict(["tiny"])  # type: ignore[arg-type]


def test_the_sections_stay_plain_frozen_dataclasses() -> None:
    """What other code does with them: replace, compare, hash, pickle."""
    recipe = recipe_from_dict({"stage": 2})
    assert pickle.loads(pickle.dumps(recipe)) == recipe and hash(recipe) == hash(recipe_from_dict({"stage": 2}))
    assert dataclasses.replace(recipe, name="b") != recipe and dataclasses.asdict(recipe)["train"]["modules"] == recipe.train.modules
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.name = "b"  # type: ignore[misc]
    assert not hasattr(type(recipe), "__pydantic_validator__")


def test_importing_the_configuration_does_not_import_pydantic() -> None:
    code = "import sys, mindspeed_vita.config; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_missing_recipe_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.yaml: no such file"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_every_field_is_documented() -> None:
    """The recipe is the user's reference: a line of documentation stands under each field."""
    import ast

    from mindspeed_vita.config import model, recipe

    trees = [ast.parse(Path(module.__file__).read_text(encoding="utf-8")) for module in (model, recipe)]
    for node in (item for tree in trees for item in tree.body if isinstance(item, ast.ClassDef)):
        for field, after in zip(node.body, [*node.body[1:], None]):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant), f"{node.name}.{ast.unparse(field.target)}"
    assert Recipe().name == "run"


def test_every_field_has_a_kind_or_choices() -> None:
    """A bare int would be read by pydantic's own rules, which take true for 1."""

    def bare(cls: Any, prefix: str) -> Iterator[str]:
        for name, hint in typing.get_type_hints(cls, include_extras=True).items():
            if typing.get_origin(hint) is Union:  # Optional
                hint = typing.get_args(hint)[0]
            if dataclasses.is_dataclass(hint):
                yield from bare(hint, f"{prefix}{name}.")
            elif typing.get_origin(hint) is not typing.Literal and not hasattr(hint, "__metadata__") and name != "__pydantic_config__":
                yield f"{prefix}{name}"

    assert list(bare(Recipe, "")) == []


def test_a_key_given_twice_is_refused_and_a_merge_may_be_overruled(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("train:\n  steps: 3\n  seed: 1\n  steps: 4\n")
    with pytest.raises(ValueError, match=r"recipe .*recipe\.yaml: line 4: found the key 'steps' again, first in line 2; keep one"):
        load_recipe(path)
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: *a, y: 5}\n"
    assert load_yaml(text) == yaml.safe_load(text) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 1, "y": 5}}


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; expected a YAML file"):
        load_recipe(tmp_path)


EVIL = ["vita_evil_beside", "vita_evil_run.vita_evil", "vita_evil_run.step_0000010.vita_evil", "vita_evil_package"]


@pytest.mark.parametrize("name", EVIL)
def test_a_checkpoint_cannot_have_its_own_code_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The current folder is on Python's path with `python -m`, and an unpacked checkpoint may be there or be it."""
    step = tmp_path / "vita_evil_run" / "step_0000010"
    (step.parent / "vita_evil_package").mkdir(parents=True)
    step.mkdir()
    bad = "raise SystemExit('the code of a checkpoint ran')"
    for place in ("vita_evil_beside.py", "vita_evil.py", "step_0000010/vita_evil.py", "vita_evil_package/__init__.py"):
        (step.parent / place).write_text(bad)
    for place in (tmp_path, step.parent):
        monkeypatch.syspath_prepend(str(place))
    (tmp_path / "newest").symlink_to(step)
    for named in (step, tmp_path / "newest"):
        with pytest.raises(ValueError, match=f"plugins: '{name}' lies at .*, in the folder of the checkpoint, whose code is not run"):
            recipe_of_checkpoint({"plugins": [name]}, named)


def test_a_checkpoint_may_name_plugins_that_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "vita_plugin_of_mine.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    assert recipe_of_checkpoint({"plugins": ["vita_plugin_of_mine"]}, tmp_path / "run").plugins == ("vita_plugin_of_mine",)
    for name in ("no.such.module", "", ".relative", "a b"):
        with pytest.raises(ValueError, match=f"plugins: {name!r} cannot be imported"):
            recipe_of_checkpoint({"plugins": [name]}, tmp_path / "run")


def test_a_checkpoint_does_not_read_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITA_SECRET", "s3cr3t")
    assert recipe_of_checkpoint({"name": "${VITA_SECRET}"}, tmp_path).name == "${VITA_SECRET}"
    assert recipe_from_dict({"name": "${VITA_SECRET}"}).name == "s3cr3t"
