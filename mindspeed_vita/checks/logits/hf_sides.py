"""Hugging Face folders, computed by transformers' own classes or by the modelling code that travels with an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import mindspeed_vita.hf
from mindspeed_vita.checkpoint.hf.config import family_of, model_config
from mindspeed_vita.checkpoint.hf.internvl_config import MODEL_TYPE
from mindspeed_vita.checkpoint.hf.internvl_files import internvl_family
from mindspeed_vita.checkpoint.hf.load import read_config
from mindspeed_vita.checkpoint.hf.processor import PREPROCESSOR, PROCESSOR, read_json
from mindspeed_vita.checkpoint.hf.weights import open_weights
from mindspeed_vita.checkpoint.mapping.families import family_rules
from mindspeed_vita.checkpoint.mapping.rules import Rule
from mindspeed_vita.checkpoint.source import Source
from mindspeed_vita.checks.logits.lockstep import Tell
from mindspeed_vita.checks.logits.probe import Probe
from mindspeed_vita.checks.logits.side import Side
from mindspeed_vita.checks.logits.streamed import Parts, StreamedModel, Weights
from mindspeed_vita.config import language_traits
from mindspeed_vita.files.shard_stream import Report
from mindspeed_vita.files.tensors import Tensors
from mindspeed_vita.hf.tiling import NORMALIZATIONS

MODELLING = "modeling_long_vita.py"
_CODE = ("configuration_long_vita.py", MODELLING, "vision_long_vita.py", "tile_positions.py", "generation_long_vita.py", "choices.py")
"""What an exported folder's forward pass runs through."""
_LONG_VITA = Parts(
    tower_layers="model.vision_model.encoder.layers",
    tower_norm="model.vision_model.post_layernorm",
    projector="model.vision_projection",
    table="model.embed_tokens",
    layers="model.layers",
    norm="model.norm",
    head="lm_head",
)
_INTERNVL = Parts(
    tower_layers="model.vision_tower.encoder.layer",
    tower_norm="model.vision_tower.layernorm",
    projector="model.multi_modal_projector",
    table="model.language_model.embed_tokens",
    layers="model.language_model.layers",
    norm="model.language_model.norm",
    head="lm_head",
)


def hf_side(folder: Path, source: Source, *, remote_code: bool) -> Optional[Side]:
    """A Hugging Face folder by the classes that load it; None for folders that no class here loads as one model.

    Args:
        folder: the checkpoint.
        source: the same, opened.
        remote_code: run the modelling code that lies in the folder, where it holds some.
    """
    config = read_config(folder) if source.format == "hf" and not source.initialised else {}
    if config and family_of(config) is not None:
        return _long_vita(folder, config, remote_code and has_code(folder))
    return _internvl(folder, config, source) if config.get("model_type") == MODEL_TYPE else None


def has_code(folder: Path) -> bool:
    """Whether a folder holds modelling code of its own."""
    return (folder / MODELLING).is_file()


def _long_vita(folder: Path, config: dict[str, Any], remote_code: bool) -> Side:
    model = model_config(config)
    weights = open_weights(folder, "long_vita", model)
    rules = family_rules("long_vita", model)

    def build() -> Any:
        if remote_code:
            return _remote(folder)
        from mindspeed_vita.hf.configuration_long_vita import config_class
        from mindspeed_vita.hf.modeling_long_vita import causal_class

        base = language_traits(model.language.family).hf_base
        with torch.device("meta"):
            return causal_class(base)(config_class(base)(**config))

    def run(types: Mapping[str, torch.dtype], report: Report, probe: Probe, tell: Tell) -> None:
        network = _with_buffers(build())
        streamed = StreamedModel(network, _LONG_VITA, _weights(weights, rules, rules, types, report), tell)
        positions_NL = probe.places_R.view(len(probe.tiles_NCHW), -1)
        hidden_1TH = network.model(
            input_ids=probe.with_context(network.config.image_token_id).unsqueeze(0),
            images=_normalised(probe, *_own_normalization(folder, config)),
            image_indices=torch.stack([torch.zeros_like(positions_NL), positions_NL]),
            use_cache=False,
        ).last_hidden_state
        streamed.logits(hidden_1TH[0], F.linear)

    return Side(computed_by=_who(folder, remote_code), avoid=_context_ids(config), run=run)


def _remote(folder: Path) -> Any:
    """The class that the folder's config.json names, from the folder's own files."""
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(settings, trust_remote_code=True)
    except (ImportError, AttributeError) as error:  # what released code meets in a newer transformers
        running = f"transformers {transformers.__version__}"
        raise ValueError(f"{folder}: its own code does not run on {running} ({error}); leave --trust-remote-code out") from error


def _who(folder: Path, remote_code: bool) -> str:
    if remote_code:
        return f"the folder's own {MODELLING}"
    ours = Path(mindspeed_vita.hf.__path__[0])
    if all((folder / name).is_file() and (folder / name).read_bytes() == (ours / name).read_bytes() for name in _CODE):
        return f"the exported {MODELLING}"
    own = "not the folder's own (--trust-remote-code runs that)" if has_code(folder) else "the folder holds none"
    return f"this version's {MODELLING}, {own}"


def _own_normalization(folder: Path, config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Mean and deviation of the pixels as the folder's processor has them; the tower's where the folder has no processor."""
    kind = _pixel_settings(folder).get("normalization", config["visual"].get("normalization", "imagenet"))
    if kind not in NORMALIZATIONS:
        raise ValueError(f"{folder / PREPROCESSOR} has normalization {kind!r}; expected one of {', '.join(NORMALIZATIONS)}")
    return NORMALIZATIONS[kind]


def _pixel_settings(folder: Path) -> dict[str, Any]:
    """What a folder says about pixels, in its own file or, as transformers 5 saves it, inside the processor's."""
    found = read_json(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else {}
    processor = read_json(folder / PROCESSOR) if (folder / PROCESSOR).is_file() else {}
    return {**found, **(processor.get("image_processor") or {})}


def _context_ids(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that mean a picture; those of the released tokenizer where the folder names none."""
    from mindspeed_vita.hf import configuration_long_vita as released

    named = {
        "image_token_id": released.RELEASED_IMAGE_CONTEXT_ID,
        "video_token_id": released.RELEASED_VIDEO_CONTEXT_ID,
        "patch_token_id": released.RELEASED_PATCH_CONTEXT_ID,
    }
    return tuple(int(config.get(name) or token) for name, token in named.items())


def _internvl(folder: Path, config: dict[str, Any], source: Source) -> Side:
    """transformers' own class. Its parameters have the names of the family internvl_model, whatever the folder's are."""
    model, family = source.recipe.model, internvl_family(folder, config)
    weights = open_weights(folder, family, model)
    stored, parameters = family_rules(family, model), family_rules("internvl_model", model)

    def run(types: Mapping[str, torch.dtype], report: Report, probe: Probe, tell: Tell) -> None:
        from transformers import InternVLConfig, InternVLForConditionalGeneration

        with torch.device("meta"):
            settings = InternVLConfig(**{key: value for key, value in config.items() if key != "model_type"})
            network = InternVLForConditionalGeneration(settings)
        streamed = StreamedModel(_with_buffers(network), _INTERNVL, _weights(weights, parameters, stored, types, report), tell)
        found = _pixel_settings(folder)
        mean, deviation = (found.get(key, default) for key, default in zip(("image_mean", "image_std"), NORMALIZATIONS["imagenet"]))
        hidden_1TH = network.model(
            input_ids=probe.with_context(network.config.image_token_id).unsqueeze(0),
            pixel_values=_normalised(probe, mean, deviation),
            use_cache=False,
        ).last_hidden_state
        streamed.logits(hidden_1TH[0], F.linear)

    return Side(computed_by="transformers' InternVLForConditionalGeneration", avoid=_context_ids(config), run=run)


def _weights(
    tensors: Tensors, parameters: Sequence[Rule], stored: Sequence[Rule], types: Mapping[str, torch.dtype], report: Report
) -> Weights:
    """Tensors of a folder for the parameters of a class.

    Args:
        tensors: by the folder's names.
        parameters: rules with the names of the class.
        stored: the same rules with the folder's names.
        types: by native name.
        report: told of the bytes that were taken.
    """
    names = {ours: theirs for one, other in zip(parameters, stored, strict=True) for ours, theirs in zip(one.hf, other.hf, strict=True)}
    return Weights(tensors=tensors, names=names, types={name: types[rule.native] for rule in stored for name in rule.hf}, report=report)


def _with_buffers(network: nn.Module) -> Any:
    """transformers' rotary modules compute their frequencies when they are made: they are made anew, with data."""
    for name, module in list(network.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            network.set_submodule(name, type(module)(config=module.config))
    return network.eval()


def _normalised(probe: Probe, mean: Any, deviation: Any) -> torch.Tensor:
    """Pixels [N, 3, H, W] as a processor makes them."""
    middle, spread = (torch.from_numpy(np.array(values, dtype=np.float32)).view(3, 1, 1) for values in (mean, deviation))
    return (probe.tiles_NCHW.to(torch.float32) / 255.0 - middle) / spread
