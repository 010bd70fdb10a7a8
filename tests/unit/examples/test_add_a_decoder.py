"""docs/add_a_decoder.md followed by the letter: its module and its recipe are cut out of the page, trained, resumed, exported, imported."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest
import torch
import yaml

from mindspeed_vita.config import (
    LanguageTraits,
    Recipe,
    language_traits,
    languages,
    recipe_from_dict,
    recipe_to_dict,
    register_language,
    validate,
)
from mindspeed_vita.config.presets import MODELS

PAGE = Path(__file__).parents[3] / "docs" / "add_a_decoder.md"


def _block(language: str, holding: str) -> str:
    """The page's block of code with some words in it."""
    return next(text for text in re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL) if holding in text)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_decoders.py").write_text(_block("python", "register_language"))
    monkeypatch.syspath_prepend(str(tmp_path))
    before = dict(languages._TRAITS), dict(MODELS)
    yield
    sys.modules.pop("my_decoders", None)
    for table, content in zip((languages._TRAITS, MODELS), before):  # other tests know no such decoder
        table.clear()
        table.update(content)


def _recipe(tiny: Any, directory: Path, language: dict[str, Any], **more: Any) -> Recipe:
    """The small recipe of the tests with another decoder at its sizes."""
    content = recipe_to_dict(tiny.recipe(directory))
    sizes = ("num_layers", "hidden_size", "num_heads", "num_kv_heads", "ffn_hidden_size", "vocab_size")
    content["model"]["language"] = {**{key: content["model"]["language"][key] for key in sizes}, **language}
    return recipe_from_dict({**content, **more})


def _trained_and_exported(recipe: Recipe, folder: Path) -> tuple[dict[str, torch.Tensor], Path]:
    from mindspeed_vita.checkpoint.hf.export import export_hf
    from mindspeed_vita.checkpoint.hf.load import import_hf
    from mindspeed_vita.checkpoint.native import checkpoint as native
    from mindspeed_vita.data.tokenizer import load_tokenizer
    from mindspeed_vita.engine.loop import train

    validate(recipe)
    train(recipe, stop_at_step=2)
    assert train(recipe, stop_at_step=3).step == 3
    weights, saved = native.read_full_weights(recipe.checkpoint.directory)
    done = export_hf(weights, recipe_from_dict(saved), folder, tokenizer=load_tokenizer(recipe.data.tokenizer))
    back = import_hf(folder)
    assert done.max_diff == 0.0 and back.model.language == recipe.model.language
    assert back.weights.keys() == weights.keys() and all(torch.equal(back.weights[name], weights[name]) for name in weights)
    return weights, folder


def test_the_pages_decoder_trains_resumes_and_exports(plugin: None, tiny: Any, tmp_path: Path) -> None:
    told = yaml.safe_load(_block("yaml", "plugins"))
    data = {**recipe_to_dict(tiny.recipe(tmp_path / "run"))["data"], **told["data"]}
    recipe = _recipe(tiny, tmp_path / "run", told["model"]["language"], plugins=told["plugins"], data=data)
    assert (recipe.model.language.rope_base, recipe.model.language.norm_eps) == (5e5, 1e-5), "the family's defaults"
    weights, folder = _trained_and_exported(recipe, tmp_path / "out")
    assert not any("decoder" in name and name.endswith("bias") for name in weights)
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["rope_parameters"]["rope_type"]) == ("long_vita_llama", "llama3")
    assert config["architectures"] == ["LongVITALlamaForCausalLM"]


def test_qwen3_trains_resumes_and_exports(tiny: Any, tmp_path: Path) -> None:
    recipe = _recipe(tiny, tmp_path / "run", {"family": "qwen3", "head_width": 12, "tie_embeddings": True})
    weights, folder = _trained_and_exported(recipe, tmp_path / "out")
    assert weights["language.decoder.layers.0.self_attention.linear_proj.weight"].shape == (32, 4 * 12)
    assert not bool(weights["language.decoder.layers.1.self_attention.k_layernorm.weight"].eq(1).all()), "it trained"
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["head_dim"], config["attention_bias"]) == ("long_vita_qwen3", 12, False)
    assert config["architectures"] == ["LongVITAQwen3ForCausalLM"]


@pytest.mark.parametrize(("base", "more", "plugins"), [("Qwen3", {"head_dim": 12}, []), ("Llama", {}, ["my_decoders"])])
def test_published_weights_and_a_tower_become_a_start(
    plugin: None, tiny: Any, tmp_path: Path, base: str, more: dict[str, Any], plugins: list[str]
) -> None:
    import transformers
    from safetensors.torch import save_file

    from mindspeed_vita.checkpoint.mapping.families import family_rules
    from mindspeed_vita.checkpoint.mapping.rules import convert_to_hf
    from mindspeed_vita.checkpoint.native import checkpoint as native
    from mindspeed_vita.cli.main import main
    from tests.tiny_checkpoint import TINY, random_weights

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = getattr(transformers, f"{base}Config")(**sizes, **more, vocab_size=384, max_position_embeddings=4096, rms_norm_eps=1e-5)
    published = getattr(transformers, f"{base}ForCausalLM")(config)
    published.save_pretrained(tmp_path / "published")
    vision = {name: tensor for name, tensor in random_weights().items() if name.startswith("vision.")}
    (tmp_path / "tower").mkdir()
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}
    (tmp_path / "tower" / "config.json").write_text(json.dumps({**tower, "patch_size": 7, "model_type": "intern_vit_6b"}))
    save_file(dict(convert_to_hf(vision, family_rules("intern_vit", TINY))), tmp_path / "tower" / "model.safetensors")
    folders = {"--from": "published", "--vision": "tower", "--output": "out"}
    words = ["--to", "native", *(word for flag, name in folders.items() for word in (flag, str(tmp_path / name)))]
    if plugins:
        assert main(["convert", *words]) == 2, "nobody knows the decoder without its plugin"
    assert main(["convert", *words, *(word for name in plugins for word in ("--plugin", name))]) == 0
    weights, saved = native.read_full_weights(tmp_path / "out")
    recipe = recipe_from_dict(saved)
    assert list(recipe.plugins) == plugins and recipe.data.template == ("llama3" if plugins else "qwen2")
    theirs = dict(published.named_parameters())
    decoder = {name: tensor for name, tensor in weights.items() if name.startswith("language.")}
    stored = dict(convert_to_hf(decoder, family_rules(recipe.model.language.family, recipe.model)))
    assert stored.keys() == theirs.keys() and all(torch.equal(stored[name], theirs[name]) for name in theirs)


def test_the_pages_presets_template_and_stop_tokens_reach_the_recipe(plugin: None) -> None:
    from mindspeed_vita.checkpoint.hf.tokenizer import stop_ids

    for preset, tied in (("llama3.1-8b", False), ("llama3.2-1b", True)):
        recipe = recipe_from_dict({"plugins": ["my_decoders"], "stage": 2, "model": {"preset": preset}})
        validate(recipe)
        assert recipe.data.template == "llama3" and recipe.data.packing == "same_source"
        assert recipe.model.language.tie_embeddings is tied and recipe.model.language.head_dim in (128, 64)
    other = recipe_from_dict({"plugins": ["my_decoders"], "model": {"preset": "llama3.1-8b"}, "data": {"template": "vicuna"}})
    assert other.data.template == "vicuna", "the recipe's own key wins"

    class Words:
        pad_token_id = 2

        def get_vocab(self) -> dict[str, int]:
            return {"<|eot_id|>": 1, "<|end_of_text|>": 2, "<|eom_id|>": 3}

        def convert_tokens_to_ids(self, tokens: Any) -> Any:
            return self.get_vocab()[tokens] if isinstance(tokens, str) else [self.get_vocab()[token] for token in tokens]

    assert stop_ids(Words(), "llama3", "llama3") == (1, 2, 3) and stop_ids(Words(), "llama3") == (1, 2)


def test_the_pages_table_names_the_presets_of_each_family() -> None:
    for family in ("qwen2", "qwen3"):
        row = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| {family} |"))
        named = set(row.split("|")[5].replace(",", " ").split())
        assert named == {name for name, model in MODELS.items() if model["language"].get("family", "qwen2") == family}
        assert ("yes" in row.split("|")[3]) == language_traits(family).qk_norm


def test_mistakes_are_refused_when_the_recipe_is_read() -> None:
    with pytest.raises(ValueError, match="model.language.family='qwen4'; expected one of qwen2, qwen3"):
        recipe_from_dict({"model": {"language": {"family": "qwen4"}}})
    with pytest.raises(ValueError, match="model.language.family 'qwen3' is registered already"):
        register_language("qwen3", LanguageTraits(hf_model_type="qwen3", hf_base="Qwen3"))
    with pytest.raises(ValueError, match="hf_model_type 'qwen2', which is that of 'qwen2'; import could not choose"):
        register_language("mine", LanguageTraits(hf_model_type="qwen2", hf_base="Qwen2"))
    with pytest.raises(ValueError, match="model.preset 'tiny' is registered already, with other sizes"):
        register_language("mine", LanguageTraits(hf_model_type="mine", hf_base="Mine"), {"tiny": {"num_layers": 1}})
    with pytest.raises(ValueError, match="head_width=64; heads of the family qwen2 are hidden_size / num_heads wide, leave it out"):
        validate(recipe_from_dict({"model": {"preset": "tiny", "language": {"head_width": 64}}}))
    with pytest.raises(ValueError, match="width of a head=33; rotary positions need an even one"):
        validate(recipe_from_dict({"model": {"preset": "tiny", "language": {"family": "qwen3", "head_width": 33}}}))
