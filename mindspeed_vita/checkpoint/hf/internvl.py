"""Reads InternVL folders: transformers' own layout and that of OpenGVLab's remote code. What Long-VITA cannot hold is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_vita.checkpoint.hf.config import language_config
from mindspeed_vita.checkpoint.hf.vision_config import need, only, vision_config
from mindspeed_vita.checkpoint.hf.weights import family_shapes
from mindspeed_vita.checkpoint.mapping.families import family_rules
from mindspeed_vita.checkpoint.mapping.rules import check_shapes
from mindspeed_vita.checkpoint.mapping.streaming import native_from_hf
from mindspeed_vita.config.recipe import ModelConfig, ProjectorConfig
from mindspeed_vita.files.safetensors_folder import SafetensorsFolder
from mindspeed_vita.files.tensors import Made, Tensors, joined


@dataclass(frozen=True, kw_only=True)
class _Layout:
    language: str
    """Key of the decoder's configuration."""
    vision: str
    """In front of the tower's names."""
    vision_family: str
    projector: Mapping[str, str]
    """Native names of the projector, and the names there."""
    biases: tuple[str, str]
    """Of the projector's two linear layers; Long-VITA has none."""
    settings: Mapping[str, Any]
    """What must have this value, if it is there."""


_LAYOUTS = {
    "internvl": _Layout(
        language="text_config",
        vision="vision_tower.",
        vision_family="internvl_vision",
        projector={
            "projector.norm.weight": "multi_modal_projector.layer_norm.weight",
            "projector.norm.bias": "multi_modal_projector.layer_norm.bias",
            "projector.linear_fc1.weight": "multi_modal_projector.linear_1.weight",
            "projector.linear_fc2.weight": "multi_modal_projector.linear_2.weight",
        },
        biases=("multi_modal_projector.linear_1.bias", "multi_modal_projector.linear_2.bias"),
        settings={
            "downsample_ratio": 0.5,
            "projector_hidden_act": "gelu",
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
        },
    ),
    "internvl_chat": _Layout(
        language="llm_config",
        vision="vision_model.",
        vision_family="intern_vit",
        projector={
            "projector.norm.weight": "mlp1.0.weight",
            "projector.norm.bias": "mlp1.0.bias",
            "projector.linear_fc1.weight": "mlp1.1.weight",
            "projector.linear_fc2.weight": "mlp1.3.weight",
        },
        biases=("mlp1.1.bias", "mlp1.3.bias"),
        settings={"downsample_ratio": 0.5, "ps_version": "v2", "select_layer": -1},
    ),
}
_LANGUAGE = "language_model."


def is_internvl(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of an InternVL."""
    return config.get("model_type") in _LAYOUTS


def read_internvl(folder: Path, config: Mapping[str, Any], *, new_projector: bool) -> tuple[ModelConfig, Tensors]:
    """The architecture, and the weights under native names, each read when it is asked for.

    Args:
        folder: holds the weights.
        config: its config.json.
        new_projector: leave the projector out; the caller makes one.

    Raises:
        ValueError: a setting, a name or a shape that Long-VITA does not have; the message says which.
    """
    layout = _LAYOUTS[config["model_type"]]
    only(config, "the InternVL", **layout.settings)
    text = dict(need(config, layout.language))
    if "tie_word_embeddings" in config:
        text["tie_word_embeddings"] = config["tie_word_embeddings"]
    tower = vision_config(need(config, "vision_config"))
    stored = SafetensorsFolder(folder)
    _check_known(folder, stored, layout)
    first = layout.projector["projector.linear_fc1.weight"]
    if first not in stored:
        raise ValueError(f"{folder} lacks {first}; expected the projector of an InternVL")
    width = tower.hidden_size if new_projector else stored.specs()[first].shape[0]
    model = ModelConfig(vision=tower, projector=ProjectorConfig(hidden_size=width), language=language_config(text))
    parts = []
    for prefix, family in ((_LANGUAGE, model.language.family), (layout.vision, layout.vision_family)):
        named = _renamed(stored, {name.removeprefix(prefix): name for name in stored if name.startswith(prefix)})
        try:
            check_shapes(named.shapes(), family_shapes(family, model), side="InternVL")
        except ValueError as error:
            raise ValueError(f"{folder}, {prefix}*: {error}") from error
        parts.append(native_from_hf(named, family_rules(family, model)))
    if not new_projector:
        parts.append(_projector(folder, stored, layout))
    return model, joined(*parts)


def _check_known(folder: Path, stored: Iterable[str], layout: _Layout) -> None:
    known = {*layout.projector.values(), *layout.biases}
    unknown = [name for name in stored if name not in known and not name.startswith((_LANGUAGE, layout.vision))]
    if unknown:
        raise ValueError(f"{folder} holds {', '.join(unknown[:4])}, which no InternVL of this layout has; expected another config.json")


def _projector(folder: Path, stored: SafetensorsFolder, layout: _Layout) -> Tensors:
    largest = {name: float(stored[name].abs().max()) for name in layout.biases if name in stored}
    if any(largest.values()):
        found = ", ".join(f"{name} up to {value:.3g}" for name, value in largest.items() if value)
        raise ValueError(
            f"{folder}: the projector has biases ({found}), and a Long-VITA's has none. The tower and the decoder fit: add "
            "--new-projector to take them and start a new projector"
        )
    missing = [name for name in layout.projector.values() if name not in stored]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}; copy it again")
    return _renamed(stored, layout.projector)


def _renamed(stored: SafetensorsFolder, names: Mapping[str, str]) -> Tensors:
    specs = stored.specs()
    return Made({ours: specs[theirs] for ours, theirs in names.items()}, lambda name: stored[names[name]])
