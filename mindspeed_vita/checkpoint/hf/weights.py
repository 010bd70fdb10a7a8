"""Weight files of a Hugging Face folder, opened only if their names and shapes are those of the architecture. Headers are read, no data."""

from __future__ import annotations

from pathlib import Path

import torch

from mindspeed_vita.checkpoint.hf.config import hf_config
from mindspeed_vita.checkpoint.mapping.families import family_rules
from mindspeed_vita.checkpoint.mapping.internvl import INTERNVL
from mindspeed_vita.checkpoint.mapping.rules import check_shapes, convert_to_hf, convert_to_native
from mindspeed_vita.checkpoint.mapping.vision_families import LEFT_OUT, TOWER_PREFIX
from mindspeed_vita.config import language_traits
from mindspeed_vita.config.recipe import ModelConfig
from mindspeed_vita.files.safetensors_folder import SafetensorsFolder
from mindspeed_vita.files.tensors import same

STRAY_NAMES = ("unused", "model.unused")
"""Parameters of some released checkpoints that no module uses."""


def open_weights(folder: Path, family: str, model: ModelConfig) -> SafetensorsFolder:
    """The tensors of a folder.

    Args:
        folder: holds safetensors files.
        family: naming of the weights, see families.py.
        model: the architecture.

    Raises:
        ValueError: a broken file, or names or shapes of another architecture; the message names them.
    """
    stored = SafetensorsFolder(folder, ignore=STRAY_NAMES)
    if family in LEFT_OUT:
        stored = SafetensorsFolder(folder, prefix=TOWER_PREFIX)
        stored = SafetensorsFolder(folder, ignore=[name for name in stored if name.startswith(LEFT_OUT[family])], prefix=TOWER_PREFIX)
    head, table = table_names(family)
    if head in stored and model.language.tie_embeddings and table in stored:
        # Some tied checkpoints store the table twice; a second table that differs is another model.
        if not same(stored[head], stored[table]):
            raise ValueError(f"{folder} says tie_word_embeddings, but its {head} differs from embed_tokens.weight: set it false")
        stored = SafetensorsFolder(folder, ignore=(*STRAY_NAMES, head))
    try:
        check_shapes(stored.shapes(), family_shapes(family, model), side="Hugging Face")
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return stored


def table_names(family: str) -> tuple[str, str]:
    """What a family calls the output layer's table, and the embedding table."""
    names = INTERNVL.get(family)
    return (names.head, f"{names.language}embed_tokens.weight") if names else ("lm_head.weight", "model.embed_tokens.weight")


def family_shapes(family: str, model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a family's tensors: those that the modelling code gives its parameters, through the rules."""
    native = native_tensors(model)
    rules = family_rules(family, model)
    return {name: tuple(tensor.shape) for name, tensor in convert_to_hf({rule.native: native[rule.native] for rule in rules}, rules)}


def native_tensors(model: ModelConfig) -> dict[str, torch.Tensor]:
    """Native names and tensors without data (meta device)."""
    from mindspeed_vita.hf.configuration_long_vita import config_class
    from mindspeed_vita.hf.modeling_long_vita import causal_class

    base = language_traits(model.language.family).hf_base
    ids = dict.fromkeys(("bos", "eos", "pad", "image", "video", "patch"), 0)
    config = config_class(base)(**hf_config(model, token_ids=ids, dtype="float32"))
    with torch.device("meta"):
        state = dict(causal_class(base)(config).named_parameters())
    if model.language.tie_embeddings:
        state.pop("lm_head.weight", None)
    return dict(convert_to_native(state, family_rules("long_vita", model)))
