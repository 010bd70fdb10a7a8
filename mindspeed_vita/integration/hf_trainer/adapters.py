"""The recipe's adapters on an exported model: peft's own layers, with the recipe's settings and the built-in engine's initial values."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Optional

import torch

from mindspeed_vita.checkpoint import lineage
from mindspeed_vita.checkpoint.adapter.layers import initial_matrices, names_and_shapes
from mindspeed_vita.checkpoint.adapter.peft_files import CONFIG, peft_settings, write_peft
from mindspeed_vita.config import LoraConfig, Recipe
from mindspeed_vita.files.publish import publish_folder, temporary_beside
from mindspeed_vita.files.tensors import held
from mindspeed_vita.files.writing import write_json

_NAME = "default"
"""What peft calls its first set of adapters, as part of every parameter's name."""


def apply_adapters(model: Any, lora: LoraConfig) -> Any:
    """peft.get_peft_model with the recipe's settings, for trainers of your own.

    The base is frozen. Adapters of a bf16 model are fp32, as in the built-in engine. What `save_pretrained` of the result writes, `vita
    convert --to native` reads. DoRA, QLoRA and others have no recipe keys: call peft yourself for those.

    Args:
        model: an export, loaded with transformers.
        lora: the recipe's section, with a rank above 0.

    Returns:
        peft's PeftModel around the model, which is changed.

    Raises:
        ValueError: the recipe has no adapters, or peft is not installed.
    """
    if not lora.rank:
        raise ValueError("lora.rank is 0: the recipe trains whole modules; set a rank, or leave peft out")
    peft = _peft()
    return peft.get_peft_model(model, peft.LoraConfig(**peft_settings(lora)), autocast_adapter_dtype=True)


def adapted(model: Any, recipe: Recipe, matrices: Optional[Mapping[str, torch.Tensor]]) -> Any:
    """A model that trains on packs, with the recipe's adapters.

    Args:
        model: of packed_model.build_packed_model.
        recipe: the run, with a rank above 0.
        matrices: native name -> matrix of adapters to start from; None: fresh ones, which are the built-in engine's.

    Returns:
        peft's PeftModel, whose forward pass is that of the model.

    Raises:
        ValueError: peft is not installed.
    """
    peft, lora = _peft(), recipe.lora
    # not get_peft_model: its class for causal models names the arguments of the forward pass, and a pack is none of them
    made = peft.PeftModel(model, peft.LoraConfig(**peft_settings(lora)))
    start = initial_matrices(recipe.model, lora, recipe.train.seed) if matrices is None else matrices
    names = names_and_shapes(recipe.model, lora)
    told = peft.set_peft_model_state_dict(made, {names[name][0]: start[name] for name in start})
    assert not told.unexpected_keys and not any(".lora_" in name for name in told.missing_keys), told
    return made


def plain_name(name: str) -> str:
    """A parameter's name in the export, whether or not peft wrapped the model; of an adapter, its layer's name and its own."""
    return name.removeprefix("base_model.model.")


def trained_matrices(trainer: Any, deepspeed: bool) -> dict[str, torch.Tensor]:
    """Native names and matrices, fp32 in host memory, the same on every rank. Collective.

    Args:
        trainer: whose model has adapters.
        deepspeed: DeepSpeed trained them: what it holds of a bf16 run in fp32 is taken.
    """
    recipe, parameters = trainer.recipe, dict(trainer.accelerator.unwrap_model(trainer.model_wrapped).named_parameters())
    found = {}
    for native, (name, _) in names_and_shapes(recipe.model, recipe.lora).items():
        parameter = parameters[f"{name.removesuffix('.weight')}.{_NAME}.weight"]
        whole: Optional[torch.Tensor] = None
        if deepspeed:
            from deepspeed.utils import safe_get_full_fp32_param

            whole = safe_get_full_fp32_param(parameter)
        with _gathered(parameter) if whole is None else nullcontext():
            found[native] = (parameter if whole is None else whole).detach().float().cpu().clone()
    return found


def write_adapter(matrices: Mapping[str, torch.Tensor], recipe: Recipe, target: Path, base: Path, record: lineage.Lineage) -> None:
    """Writes a folder that peft loads, and that `vita convert` and `--adapter` read; an earlier one of the same run is replaced.

    Args:
        matrices: by native name.
        recipe: of the run, which names the base.
        target: folder to write.
        base: export of the base.
        record: where the matrices come from.
    """
    folder = temporary_beside(target)
    folder.mkdir()
    write_peft(folder, held(matrices), recipe, base_export=str(base.resolve()))
    write_json(folder / lineage.LINEAGE, record.encode())
    publish_folder(folder, target, known_by=CONFIG, replace=True)


def _gathered(parameter: Any) -> Any:
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError("peft is not installed, and --engine hf trains adapters with it; pip install 'mindspeed_vita[peft]'") from error
    return peft
