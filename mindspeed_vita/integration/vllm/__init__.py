"""Long-VITA inside vLLM, with the token layout of training: a plugin that vLLM finds by its entry point. No engine is started here.

`register` is all that vLLM calls. vllm is imported only there, and by model.py and processing.py.
"""

from __future__ import annotations

ARCHITECTURES = {"LongVITAForCausalLM": "Qwen2", "LongVITAQwen3ForCausalLM": "Qwen3"}
"""Names in config.json's `architectures`, and how the names of their decoder's classes begin in transformers."""
TESTED = "0.33.0"
"""The release of vLLM whose interfaces the tests check."""


def register() -> None:
    """Tells vLLM and transformers about Long-VITA. vLLM calls it in each of its processes, sometimes more than once.

    Without --trust-remote-code the folder's configuration is then read by the classes of this package, so released folders load too,
    whose own code no current transformers runs.
    """
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from mindspeed_vita.hf.configuration_long_vita import config_class

    for architecture, base in ARCHITECTURES.items():
        config = config_class(base)
        AutoConfig.register(config.model_type, config, exist_ok=True)
        ModelRegistry.register_model(architecture, f"mindspeed_vita.integration.vllm.model:{architecture}")
