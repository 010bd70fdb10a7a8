"""The bridge: a recipe becomes a command line and comes back the same; flags alone make a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from mindspeed_vita.choices import RECOMPUTES
from mindspeed_vita.config import Recipe, load_recipe, recipe_from_dict
from mindspeed_vita.integration.mindspeed_llm.arguments import arguments_from_recipe, recipe_from_arguments, register
from mindspeed_vita.integration.mindspeed_llm.flags import BY_HAND, MEGATRON, NO_EFFECT, VIRTUAL, VITA, leaves

# the types that Megatron-LM core_v0.12.1 and MindSpeed-LLM 26.1.0 parse these flags with; whole numbers unless named here
_FLOATS = {
    "--norm-epsilon", "--init-method-std", "--lr", "--min-lr", "--lr-warmup-fraction", "--weight-decay", "--adam-beta1", "--adam-beta2",
    "--adam-eps", "--clip-grad",
}  # fmt: skip
_TEXTS = {"--tokenizer-name-or-path", "--save"}


def parse(line: list[str]) -> argparse.Namespace:
    """What upstream's parser makes of a command line, as far as the bridge reads it."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for flag in MEGATRON.values():
        parser.add_argument(flag, type=float if flag in _FLOATS else str if flag in _TEXTS else int, default=None)
    parser.add_argument("--untie-embeddings-and-output-weights", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--recompute-granularity", default=None)
    parser.add_argument("--load", default=None)
    parser.add_argument(VIRTUAL, type=int, default=None)
    parser.add_argument("--tensorboard-dir", default=None)
    register(parser)
    return parser.parse_known_args(line)[0]


def round_trip(recipe: Recipe) -> Recipe:
    return recipe_from_arguments(parse(arguments_from_recipe(recipe)))


RECIPES = [
    {},
    {"model": {"preset": "tiny"}, "train": {"precision": "fp32"}},
    *({"stage": stage, "model": {"preset": preset}} for preset in ("7b", "14b", "72b") for stage in (1, 2, 3, 4)),
    {"stage": 1, "model": {"preset": "qwen3-8b"}},
    {"stage": 2, "model": {"preset": "14b"}, "parallel": {"pp": 4, "virtual_stages": 3}},
    {"model": {"preset": "tiny", "language": {"family": "qwen3", "head_width": 48}}, "data": {"template": "vicuna"}},
    # what a part's preset says, and a key that says the model's own default over it
    {"model": {"preset": "7b", "vision": {"preset": "siglip_400m", "hidden_size": 1024}}},
    {
        "name": "on",
        "stage": 3,
        "model": {
            "preset": "7b",
            "lm_head": "chunked",
            "init_std": 0.01,
            "vision": {"layer_scale_init": 0.5},
            "language": {
                "tie_embeddings": True,
                "rope_scaling": {"kind": "longrope", "factor": 4.0, "short_factor": [1.0] * 64, "long_factor": [1.5] * 64},
            },
        },
        "data": {"mixture": "a b/mixture.yaml", "tokenizer": "tokenizer", "resets": True, "max_fps": 0.5, "num_workers": 3},
        "parallel": {"tp": 4, "pp": 2, "cp": 2},
        "train": {"modules": ["projector", "vision"], "vision_lr_mult": 0.1, "vision_layer_decay": 0.9, "recompute": "full", "lr": 3e-6},
        "checkpoint": {"directory": "runs/x", "init_from": "runs/w", "resume": False, "keep": 0, "background": True},
        "logging": {"tensorboard": False, "progress": False, "every": 7},
        "eval": {"mixture": "held out.yaml", "packs": 13, "every": 40, "seed": 9, "patience": 3, "keep_best": True, "gate": 1.25},
    },
]


@pytest.mark.parametrize("content", RECIPES, ids=lambda content: str(content)[:60])
def test_a_recipe_comes_back_whole(content: dict):
    recipe = recipe_from_dict(content)
    assert round_trip(recipe) == recipe


def test_chunks_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"num_layers=48 over parallel.pp \* parallel.virtual_stages=5 \* 2: .*use a divisor"):
        arguments_from_recipe(recipe_from_dict({"model": {"preset": "14b"}, "parallel": {"pp": 5, "virtual_stages": 2}}))


def test_every_key_of_the_recipe_has_exactly_one_way():
    keys = [key for key, _ in leaves()]
    ways = [*MEGATRON, *VITA, *BY_HAND]
    assert sorted(ways) == sorted(keys)
    assert set(NO_EFFECT) <= set(VITA)


def test_flags_alone_make_a_recipe():
    line = """
        --num-layers 28 --hidden-size 3584 --num-attention-heads 28 --num-query-groups 4 --ffn-hidden-size 18944
        --padded-vocab-size 152064 --seq-length 16384 --max-position-embeddings 32768 --rotary-base 1000000 --lr 1e-5 --min-lr 1e-7
        --lr-warmup-fraction 0.03 --tensor-model-parallel-size 4 --untie-embeddings-and-output-weights --bf16 --global-batch-size 528
        --train-iters 5000 --vita-stage 2 --vita-model-preset 7b --vita-data-mixture mixture.yaml --vita-train-vision-lr-mult 0.2
    """
    recipe = recipe_from_arguments(parse(line.split()))
    assert recipe.model.language == recipe_from_dict({"model": {"preset": "7b"}}).model.language.__class__(
        num_layers=28, hidden_size=3584, num_heads=28, num_kv_heads=4, ffn_hidden_size=18944, vocab_size=152064, max_positions=32768
    )
    assert (recipe.data.resets, recipe.data.packing, recipe.data.max_images) == (True, "same_source", 64), "from the stage"
    assert (recipe.train.vision_lr_mult, recipe.train.vision_layer_decay) == (0.2, 0.9), "a flag over the stage"
    assert recipe.data.mixture == "mixture.yaml" and recipe.parallel.tp == 4 and recipe.train.precision == "bf16"


def test_flags_with_wrong_values_are_refused_together():
    line = "--vita-stage 7 --vita-data-packing same --vita-data-num-workers -1 --vita-train-vision-lr-mult high --global-batch-size 0"
    with pytest.raises(ValueError) as error:
        recipe_from_arguments(parse(line.split()))
    assert str(error.value).startswith("command line: 5 problems: ")
    for message in (
        "stage=7; expected one of 1, 2, 3, 4",
        "data.packing='same'; expected one of same_source, cross_source",
        "data.num_workers=-1; expected at least 0",
        "train.vision_lr_mult='high'; expected a number, found str",
        "train.global_batch=0; expected at least 1",
    ):
        assert message in str(error.value)


def test_flags_say_what_they_carry():
    line = arguments_from_recipe(recipe_from_dict({"stage": 2, "model": {"preset": "14b"}, "parallel": {"tp": 8}}))
    text = " ".join(line)
    assert "--num-layers 48 --hidden-size 5120 --num-attention-heads 40 --num-query-groups 8" in text
    assert "--rotary-base 1000000 " in text and "--sequence-parallel" in text and "--untie-embeddings-and-output-weights" in text
    assert "--vita-stage 2" in text and "vision-lr-mult" not in text, "the stage says it"


@pytest.mark.parametrize(
    ("told", "iterations"),
    [({}, ["0"]), ({"mixture": "m.yaml", "packs": 16}, ["2"]), ({"mixture": "m.yaml", "packs": 17}, ["3"]), ({"mixture": "m.yaml"}, [])],
)
def test_the_held_out_packs_are_iterations_of_whole_global_batches(told, iterations):
    line = arguments_from_recipe(recipe_from_dict({"train": {"global_batch": 8}, "eval": {**told, "every": 40}}))
    assert [value for flag, value in zip(line, line[1:]) if flag == "--eval-iters"] == iterations
    assert line[line.index("--eval-interval") + 1] == "40"


def test_a_familys_traits_are_flags():
    text = " ".join(arguments_from_recipe(recipe_from_dict({"model": {"preset": "qwen3-0.6b"}})))
    assert "--qk-layernorm" in text and "--kv-channels 128" in text and "--add-qkv-bias" not in text
    assert "--untie-embeddings" not in text and "--vita-model-preset qwen3-0.6b" in text and "family" not in text, "the preset says it"
    text = " ".join(arguments_from_recipe(recipe_from_dict({"model": {"preset": "qwen3-8b"}})))
    assert "--qk-layernorm" in text and "--kv-channels" not in text, "Megatron takes 4096 / 32 by itself"
    text = " ".join(arguments_from_recipe(recipe_from_dict({"model": {"preset": "tiny", "language": {"family": "qwen3"}}})))
    assert "--vita-model-language-family qwen3" in text and "--kv-channels 128" in text
    text = " ".join(arguments_from_recipe(recipe_from_dict({"model": {"preset": "7b"}})))
    assert "--add-qkv-bias" in text and "--qk-layernorm" not in text and "--kv-channels" not in text


def test_a_value_that_megatron_cannot_carry_is_refused():
    recipe = recipe_from_dict({"model": {"preset": "tiny", "language": {"rope_base": 10000.5}}})
    with pytest.raises(ValueError, match="--rotary-base takes whole numbers only"):
        arguments_from_recipe(recipe)


def test_a_wrong_value_names_its_key():
    arguments = parse(arguments_from_recipe(recipe_from_dict({"model": {"preset": "tiny"}})))
    arguments.vita_data_max_tiles = "many"
    with pytest.raises(ValueError, match=r"command line: data.max_tiles='many'; expected a whole number"):
        recipe_from_arguments(arguments)
    arguments.vita_data_max_tiles = "[1"
    with pytest.raises(ValueError, match=r"--vita-data-max-tiles '\[1' is not a YAML value"):
        recipe_from_arguments(arguments)


@pytest.mark.parametrize("mode", RECOMPUTES)
@pytest.mark.parametrize("rest", [{}, {"recompute_layers": 1}, {"offload": "inputs"}])
def test_recomputation_comes_back_and_only_one_of_two_carries_it_out(mode: str, rest: dict):
    recipe = recipe_from_dict({"model": {"preset": "tiny"}, "train": {"recompute": mode, **rest}})
    line = arguments_from_recipe(recipe)
    assert round_trip(recipe).train == recipe.train
    assert ("--recompute-granularity" in line) == (mode == "full" and not rest)
    assert ("--vita-train-recompute" in line) == (mode != "none" and (mode != "full" or bool(rest)))


def test_two_ways_to_recompute_are_refused():
    line = ["--vita-train-recompute", "mlp", "--recompute-granularity", "full", "--vita-model-preset", "tiny"]
    with pytest.raises(ValueError, match="mlp and --recompute-granularity full are both given, and each recomputes the layers; leave one"):
        recipe_from_arguments(parse(line))


def test_the_documented_command_line_is_that_of_the_recipe(monkeypatch: pytest.MonkeyPatch):
    root = Path(__file__).parents[4]
    text = (root / "docs" / "mindspeed_llm.md").read_text(encoding="utf-8")
    line = text.split("pretrain_vita.py \\\n")[1].split("```")[0].replace("\\\n", " ").split()
    parse(line)
    for name in ("DATA_ROOT", "TOKENIZER", "OUTPUT_ROOT", "INIT_FROM"):
        monkeypatch.setenv(name, f"${name}")
    monkeypatch.delenv("MIXTURE", raising=False)
    recipe = load_recipe(root / "examples" / "long_vita_14b" / "stage2.yaml")
    assert flags(line) - flags(arguments_from_recipe(recipe)) == {"overlap-grad-reduce", "use-fused-rmsnorm"}
    assert flags(arguments_from_recipe(recipe)) - flags(line) == set()


def flags(line: list[str]) -> set[str]:
    """Each flag with its values, as one text."""
    return {part.strip() for part in f" {' '.join(line)}".split(" --")[1:]}
