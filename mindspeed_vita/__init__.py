"""Train and run Long-VITA: vision-language models with up to a million tokens of context.

Importing the package is free of side effects: it loads neither megatron, mindspeed nor torch_npu.
"""

__version__ = "0.1.0"
