"""docs/add_a_tower.md followed by the letter: the module and the recipe are cut out of the page, trained, and exported."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

from mindspeed_vita.config import TowerTraits, recipe_from_dict, recipe_to_dict, register_traits, tower_traits, validate

PAGE = Path(__file__).parents[3] / "docs" / "add_a_tower.md"


def _block(language: str, holding: str) -> str:
    """The page's block of code with some words in it."""
    return next(text for text in re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL) if holding in text)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_towers.py").write_text(_block("python", "register_tower"))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_towers", None)


def test_the_pages_tower_trains_resumes_and_exports(plugin: None, tiny, tmp_path: Path) -> None:
    from mindspeed_vita.checkpoint.hf.export import export_hf
    from mindspeed_vita.checkpoint.native import checkpoint as native
    from mindspeed_vita.data.tokenizer import load_tokenizer
    from mindspeed_vita.engine.loop import train

    content = yaml.safe_load(_block("yaml", "plugins"))
    base = recipe_to_dict(tiny.recipe(tmp_path / "run"))
    base["model"]["vision"] = {"tile_size": 28, "patch_size": 7}
    base |= {"plugins": content["plugins"], "model": {**base["model"], **content["model"]}}
    recipe = recipe_from_dict(base)
    validate(recipe)
    train(recipe, stop_at_step=2)
    result = train(recipe, stop_at_step=3)
    assert result.step == 3
    weights, saved = native.read_full_weights(tmp_path / "run")
    assert "vision.final_layernorm.weight" in weights and "vision.class_token" not in weights
    done = export_hf(weights, recipe_from_dict(saved), tmp_path / "out", tokenizer=load_tokenizer(recipe.data.tokenizer))
    assert done.max_diff == 0.0 and tower_traits("plain") == TowerTraits(class_token=False, final_norm=True)


def test_the_pages_presets_are_those_of_the_recipe() -> None:
    for name in ("intern_vit_300m", "intern_vit_6b", "siglip_400m", "clip_l"):
        vision = recipe_from_dict({"model": {"preset": "7b", "vision": {"preset": name}}}).model.vision
        row = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| {name} |"))
        numbers = [int(cell.split("(")[0].replace(",", "")) for cell in row.split("|")[2:6]]
        assert numbers == [vision.num_layers, vision.hidden_size, vision.num_heads, vision.ffn_hidden_size]
        assert vision.grid == 32 and vision.hidden_size % vision.num_heads == 0


def test_mistakes_are_refused_when_the_recipe_is_read() -> None:
    with pytest.raises(ValueError, match="plugins: 'no_such_module' cannot be imported .*PYTHONPATH"):
        recipe_from_dict({"plugins": ["no_such_module"]})
    with pytest.raises(ValueError, match="model.vision.preset='vit_g'; expected one of intern_vit_300m"):
        recipe_from_dict({"model": {"vision": {"preset": "vit_g"}}})
    with pytest.raises(ValueError, match="model.vision.tower 'clip' is registered already"):
        register_traits("clip", TowerTraits())
    with pytest.raises(ValueError, match="tower 'new' has activation 'relu'; expected one of gelu, gelu_tanh, quick_gelu"):
        register_traits("new", TowerTraits(activation="relu"))
    siglip_at_its_own_size = {"model": {"preset": "7b", "vision": {"preset": "siglip_400m", "tile_size": 378}}}
    with pytest.raises(ValueError, match="pixel_shuffle=2 does not divide the patch grid=27"):
        validate(recipe_from_dict(siglip_at_its_own_size))
