"""Trains Long-VITA with MindSpeed-LLM and Megatron's flags: torchrun ... pretrain_vita.py --num-layers 48 ... (docs/mindspeed_llm.md)."""

import sys

from mindspeed_vita.integration.mindspeed_llm.pretrain_vita import main

if __name__ == "__main__":
    sys.exit(main())
