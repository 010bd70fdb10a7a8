"""The recipe's adapters on an exported model: peft's own layers, with the recipe's settings. For trainers of transformers' models."""

from __future__ import annotations

from typing import Any

from mindspeed_vita.checkpoint.adapter.peft_files import peft_settings
from mindspeed_vita.config import LoraConfig

TESTED = "0.21"
"""The release of peft that the tests ran with. setup.py's extra `peft` names it too."""


def apply_adapters(model: Any, lora: LoraConfig) -> Any:
    """peft.get_peft_model with the recipe's settings.

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
    try:
        import peft
    except ImportError as error:
        raise ValueError("peft is not installed; pip install 'mindspeed_vita[peft]'") from error
    return peft.get_peft_model(model, peft.LoraConfig(**peft_settings(lora)), autocast_adapter_dtype=True)
