"""Import of Hugging Face weights: Long-VITA (released or exported), or a decoder with a separate tower and a fresh projector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError

from mindspeed_vita.checkpoint.hf.config import family_of, language_config, model_config, vision_config
from mindspeed_vita.checkpoint.hf.internvl_config import internvl_model, is_internvl
from mindspeed_vita.checkpoint.hf.internvl_files import internvl_family, read_internvl_data
from mindspeed_vita.checkpoint.hf.processor import read_json, read_processor
from mindspeed_vita.checkpoint.hf.weights import open_weights
from mindspeed_vita.checkpoint.mapping.families import family_rules
from mindspeed_vita.checkpoint.mapping.streaming import native_from_hf
from mindspeed_vita.config import language_traits, projector_traits, tower_traits
from mindspeed_vita.config.languages import family_of_hf
from mindspeed_vita.config.recipe import DataConfig, ModelConfig, ProjectorConfig
from mindspeed_vita.files.tensors import Made, Tensors, cast, held, joined


@dataclass(frozen=True, kw_only=True)
class ImportedModel:
    """Weights by native names, and the architecture they are of."""

    model: ModelConfig
    """Sizes."""
    weights: Tensors
    """Full tensors, each read when it is asked for."""
    data: DataConfig
    """How the folder's processor cuts pictures and videos; the released settings where it has no processor."""
    initialised: tuple[str, ...] = ()
    """Native names that no source held and that got initial values: the projector, where a decoder and a tower are joined."""


def import_hf(
    folder: str | Path,
    *,
    vision: Optional[str | Path] = None,
    dtype: Optional[torch.dtype] = None,
    seed: int = 1234,
    tile_size: int = 0,
    new_projector: bool = False,
) -> ImportedModel:
    """Read a Hugging Face folder.

    Args:
        folder: a Long-VITA folder, an InternVL folder (of transformers or its own), or that of a decoder of a family in
            config/languages.py, such as Qwen2.5 or Qwen3.
        vision: with a decoder: a folder of InternViT (its own layout or transformers' InternVLVisionModel), SigLIP or CLIP.
        dtype: type of the result; None keeps what is stored.
        seed: of the projector's initial weights.
        tile_size: with a tower on its own: side of a tile, for which its positions are interpolated; 0 keeps the tower's.
        new_projector: of an InternVL, take the decoder and the tower only, and start a projector anew.

    Raises:
        ValueError: another architecture, or names or shapes that do not fit it.
    """
    folder = Path(folder)
    try:
        return _import(folder, None if vision is None else Path(vision), dtype, seed, tile_size, new_projector)
    except (TypeError, KeyError, AttributeError, IndexError, OverflowError, StrictDataclassError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"{folder} cannot be read: a value in its JSON files is of the wrong kind ({reason})") from error
    except ValueError as error:
        if folder.name in str(error):
            raise
        raise ValueError(f"{folder}: {error}") from error


def _import(
    folder: Path, vision: Optional[Path], dtype: Optional[torch.dtype], seed: int, tile_size: int, new_projector: bool
) -> ImportedModel:
    """As import_hf."""
    config = read_config(folder)
    if new_projector and not is_internvl(config):
        raise ValueError(f"{folder} is no InternVL; leave --new-projector out")
    if family_of(config) is not None:
        if vision is not None:
            raise ValueError(f"{folder} is a whole Long-VITA; leave --vision out")
        model = model_config(config)
        return ImportedModel(model=model, weights=_read(folder, "long_vita", model, dtype), data=read_processor(folder))
    if is_internvl(config):
        if vision is not None:
            raise ValueError(f"{folder} is a whole InternVL; leave --vision out")
        return _internvl(folder, config, dtype, seed, new_projector)
    try:
        family_of_hf(str(config.get("model_type")))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}; a decoder needs --vision with the folder of a tower") from error
    if vision is None:
        raise ValueError(f"{folder} is a language model without a tower; add --vision with a folder of InternViT-300M-448px")
    return _join(folder, config, vision, dtype, seed, tile_size)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder.

    Raises:
        ValueError: none there, or not JSON.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no config.json; expected a Hugging Face model folder")
    return read_json(path)


_FAMILIES = {
    "internvl_vision": "internvl_vision",
    **dict.fromkeys(("siglip", "siglip_vision_model"), "siglip_vision"),
    **dict.fromkeys(("clip", "clip_vision_model"), "clip_vision"),
}
"""model_type of a tower -> family of its weights; InternViT's own repositories otherwise."""


def resize_positions(positions_PH: torch.Tensor, grid: int, *, has_class: bool) -> torch.Tensor:
    """Learned positions for another grid: bicubic, as transformers interpolates them; that of the class token stays.

    Args:
        positions_PH: for a square grid, row by row, behind the class token's where there is one.
        grid: patches along one side from now on.
        has_class: whether the first position is the class token's.
    """
    extra_EH, patches_PH = positions_PH[: int(has_class)], positions_PH[int(has_class) :]
    side = math.isqrt(len(patches_PH))
    assert side * side == len(patches_PH), len(patches_PH)
    if side == grid:
        return positions_PH
    square_1HRC = patches_PH.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square_1HRC, size=(grid, grid), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).flatten(0, 2)
    return torch.cat([extra_EH, resized.to(positions_PH.dtype)])


def _join(folder: Path, config: Mapping[str, Any], vision: Path, dtype: Optional[torch.dtype], seed: int, tile_size: int) -> ImportedModel:
    tower_config = read_config(vision)
    tower = vision_config(tower_config)
    model = ModelConfig(vision=tower, projector=ProjectorConfig(hidden_size=tower.hidden_size), language=language_config(config))
    family = _FAMILIES.get(tower_config.get("model_type", ""), "intern_vit")
    weights = joined(_read(folder, model.language.family, model, dtype), _read(vision, family, model, dtype))
    if tile_size:
        model = replace(model, vision=replace(tower, tile_size=tile_size))
        name = "vision.position_embeddings.weight"
        positions = resize_positions(weights[name], model.vision.grid, has_class=tower_traits(tower.tower).class_token)
        weights = joined(weights, held({name: positions}))
    template = language_traits(model.language.family).template
    projector = initial_projector(model, seed, weights.specs()["language.embedding.word_embeddings.weight"].dtype)
    data, new = DataConfig(template=template), tuple(projector)
    return ImportedModel(model=model, weights=joined(weights, projector), data=data, initialised=new)


def _internvl(folder: Path, config: Mapping[str, Any], dtype: Optional[torch.dtype], seed: int, new_projector: bool) -> ImportedModel:
    model, family, data = internvl_model(config), internvl_family(folder, config), read_internvl_data(folder, config)
    stored, rules = open_weights(folder, family, model), family_rules(family, model)
    of_projector = [rule for rule in rules if rule.native.startswith("projector.")]
    if not new_projector:
        # before anything is written: InternVL's own weights have biases here
        for rule in of_projector:
            try:
                rule.to_native([stored[name] for name in rule.hf])
            except ValueError as error:
                advice = "vita convert --new-projector takes the decoder and the tower, and starts a projector"
                raise ValueError(f"{folder}: {error}. {advice}") from error
        return ImportedModel(model=model, weights=cast(native_from_hf(stored, rules), dtype), data=data)
    left_out = {name for rule in of_projector for name in rule.hf}
    kept = Made({name: spec for name, spec in stored.specs().items() if name not in left_out}, stored.__getitem__)
    weights = cast(native_from_hf(kept, [rule for rule in rules if rule not in of_projector]), dtype)
    model = replace(model, projector=ProjectorConfig(hidden_size=model.vision.hidden_size))
    projector = initial_projector(model, seed, weights.specs()["language.embedding.word_embeddings.weight"].dtype)
    return ImportedModel(model=model, weights=joined(weights, projector), data=data, initialised=tuple(projector))


def initial_projector(model: ModelConfig, seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Initial values of a projector: normal weights of the model's init_std, neutral norm."""
    generator = torch.Generator().manual_seed(seed)
    merged = model.vision.hidden_size * model.projector.pixel_shuffle**2
    hidden = model.projector.hidden_size

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * model.init_std).to(dtype)

    weights = {
        "projector.norm.weight": torch.ones(merged, dtype=dtype),
        "projector.norm.bias": torch.zeros(merged, dtype=dtype),
        "projector.linear_fc1.weight": normal(hidden, merged),
        "projector.linear_fc2.weight": normal(model.language.hidden_size, hidden),
    }
    if projector_traits(model.projector.kind).newline:
        weights["projector.newline"] = normal(1, model.language.hidden_size)
    return weights


def _read(folder: Path, family: str, model: ModelConfig, dtype: Optional[torch.dtype]) -> Tensors:
    return cast(native_from_hf(open_weights(folder, family, model), family_rules(family, model)), dtype)
