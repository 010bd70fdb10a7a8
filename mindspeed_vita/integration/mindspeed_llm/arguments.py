"""The bridge between a recipe and Megatron's arguments, in both directions. The only file that asks Megatron for its arguments."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import yaml

from mindspeed_vita.config import Recipe, recipe_from_dict, recipe_to_dict
from mindspeed_vita.config.recompute import Recomputation
from mindspeed_vita.integration.mindspeed_llm.decoder_flags import decoder_flags
from mindspeed_vita.integration.mindspeed_llm.flags import FIXED, MEGATRON, NO_EFFECT, RECOMPUTE, TEXT, VIRTUAL, VITA, attribute

_NAMES = ("stage", "model.preset")
_PARTS = ("model.vision.preset", "model.language.family")
"""Keys that others take their defaults from; those of _PARTS have defaults themselves, from the model's preset."""


def megatron_arguments() -> Any:
    """The arguments of the running `pretrain`."""
    from megatron.training import get_args

    return get_args()


def running_recipe() -> Recipe:
    """The recipe that the running `pretrain` was told by its flags."""
    return recipe_from_arguments(megatron_arguments())


def register(parser: argparse.ArgumentParser) -> None:
    """Adds the --vita-... flags."""
    group = parser.add_argument_group(title="vita", description="keys of mindspeed_vita/config/recipe.py that Megatron has no flag for")
    for key, flag in VITA.items():
        group.add_argument(flag, type=str, default=None, metavar="VALUE", help=f"recipe key {key}")
    group.add_argument(RECOMPUTE, type=str, default=None, metavar="VALUE", help="recipe key train.recompute, but for full in every layer")


def recipe_from_arguments(arguments: argparse.Namespace) -> Recipe:
    """The recipe that Megatron's arguments and the --vita-... flags say. What neither says comes from --vita-stage,
    --vita-model-preset, --vita-model-vision-preset and --vita-model-language-family.

    Args:
        arguments: as argparse leaves them, before or after Megatron's own checks.

    Raises:
        ValueError: a --vita-... value has the wrong type, or a name is unknown.
    """
    content: dict[str, Any] = {}
    for key, flag in MEGATRON.items():
        value = getattr(arguments, attribute(flag), None)
        if value is not None:
            _put(content, key, value)
    for key, flag in VITA.items():
        text = getattr(arguments, attribute(flag), None)
        if text is not None:
            _put(content, key, _parse(key, flag, text))
    _put(content, "model.language.tie_embeddings", not arguments.untie_embeddings_and_output_weights)
    _put(content, "train.precision", "bf16" if arguments.bf16 else "fp32")
    _put(content, "train.recompute", _recompute(arguments))
    _put(content, "parallel.virtual_stages", virtual_stages(arguments))
    _put(content, "checkpoint.resume", arguments.load is not None)
    _put(content, "logging.tensorboard", getattr(arguments, "tensorboard_dir", None) is not None)
    return recipe_from_dict(content, where="command line")


def arguments_from_recipe(recipe: Recipe) -> list[str]:
    """The command line, without a program's name, that makes MindSpeed-LLM run a recipe.

    Raises:
        ValueError: the recipe has a value that Megatron's flag cannot carry.
    """
    content = recipe_to_dict(recipe)
    line = [*FIXED, *decoder_flags(recipe.model.language)]
    for key, flag in MEGATRON.items():
        value = _get(content, key)
        if value != "":
            line += [flag, _number(key, flag, value)]
    line += _switches(recipe)
    told, defaults = _defaults(content, _NAMES), _defaults(content, (*_NAMES, *_PARTS))
    for key, flag in VITA.items():
        value = _get(content, key)
        if value is not None and (key in _NAMES or value != _get(told if key in _PARTS else defaults, key)):
            line += [flag, _text(value)]
    return line


def virtual_stages(arguments: argparse.Namespace) -> int:
    """parallel.virtual_stages: chunks of the layers of a stage.

    Raises:
        ValueError: the layers do not divide.
    """
    layers = getattr(arguments, attribute(VIRTUAL), None)
    if layers is None:
        return 1
    stage = (arguments.num_layers or 0) // (arguments.pipeline_model_parallel_size or 1)
    if layers < 1 or stage < layers or stage % layers:
        raise ValueError(f"{VIRTUAL} {layers} does not divide the {stage} layers of a pipeline stage; use a divisor")
    return int(stage // layers)


def eval_iterations(recipe: Recipe) -> Optional[int]:
    """Global batches of one evaluation, which is what Megatron counts; the last one is filled up with masked packs.

    Returns:
        0 where nothing is held out; None with eval.packs=0, where only the data tells: it is set once that was opened.
    """
    if not recipe.eval.mixture:
        return 0
    return -(-recipe.eval.packs // recipe.train.global_batch) or None


def without_effect(recipe: Recipe) -> list[str]:
    """A line for every key that was set and that MindSpeed-LLM does not know."""
    content, defaults = recipe_to_dict(recipe), recipe_to_dict(Recipe())
    set_keys = [key for key in NO_EFFECT if _get(content, key) != _get(defaults, key)]
    return [f"{key} has no effect with MindSpeed-LLM: {NO_EFFECT[key]}" for key in set_keys]


def _switches(recipe: Recipe) -> list[str]:
    switches = [] if recipe.model.language.tie_embeddings else ["--untie-embeddings-and-output-weights"]
    if recipe.parallel.tp > 1:
        switches.append("--sequence-parallel")
    if recipe.train.precision == "bf16":
        # in fp32 Megatron saves that optimizer's parameters, but cannot load them
        switches += ["--bf16", "--use-distributed-optimizer"]
    if Recomputation.of(recipe.train) == Recomputation("full"):
        switches += ["--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1"]
    elif recipe.train.recompute != "none":
        switches += [RECOMPUTE, recipe.train.recompute]
    if recipe.parallel.virtual_stages > 1:
        switches += [VIRTUAL, str(_layers_of_a_chunk(recipe))]
    if recipe.checkpoint.resume:
        switches += ["--load", recipe.checkpoint.directory]
    iterations = eval_iterations(recipe)
    if iterations is not None:
        switches += ["--eval-iters", str(iterations)]
    if recipe.logging.tensorboard:
        switches += ["--tensorboard-dir", str(Path(recipe.checkpoint.directory) / "tensorboard")]
    return switches


def _recompute(arguments: argparse.Namespace) -> str:
    """train.recompute: what Megatron's flag says, or ours.

    Raises:
        ValueError: both are given, so layers would be recomputed twice.
    """
    ours = getattr(arguments, attribute(RECOMPUTE), None)
    if ours and arguments.recompute_granularity:
        raise ValueError(
            f"{RECOMPUTE} {ours} and --recompute-granularity {arguments.recompute_granularity} are both given, and each recomputes the "
            "layers; leave one of them out"
        )
    return ours or arguments.recompute_granularity or "none"


def _layers_of_a_chunk(recipe: Recipe) -> int:
    layers, parallel = recipe.model.language.num_layers, recipe.parallel
    chunks = parallel.pp * parallel.virtual_stages
    if layers % chunks:
        raise ValueError(
            f"model.language.num_layers={layers} over parallel.pp * parallel.virtual_stages={parallel.pp} * {parallel.virtual_stages}: "
            "inside MindSpeed-LLM all chunks have the same number of layers; use a divisor, or the built-in engine"
        )
    return layers // chunks


def _defaults(content: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """A whole recipe in which only these keys are said."""
    said: dict[str, Any] = {}
    for key in keys:
        if _get(content, key) not in (None, ""):
            _put(said, key, _get(content, key))
    return recipe_to_dict(recipe_from_dict(said))


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
    content[leaf] = value


def _get(content: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        content = content[part]
    return content


def _number(key: str, flag: str, value: Any) -> str:
    if flag != "--rotary-base":
        return str(value)
    if value != int(value):
        raise ValueError(f"{key}={value}: Megatron's {flag} takes whole numbers only; use one, or the built-in engine")
    return str(int(value))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(value) if all(isinstance(item, str) for item in value) else str(value)
    return str(value)


def _parse(key: str, flag: str, text: str) -> Any:
    if key in TEXT:
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{flag} {text!r} is not a YAML value") from error
