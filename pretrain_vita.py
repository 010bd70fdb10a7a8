"""Trains Long-VITA with MindSpeed-LLM and Megatron's flags: torchrun ... pretrain_vita.py --num-layers 48 ... (docs/mindspeed_llm.md)."""

import sys

try:
    from mindspeed_vita.integration.mindspeed_llm.pretrain_vita import main
except ModuleNotFoundError as error:
    sys.exit(f"{sys.argv[0]}: {error.name} is missing in {sys.executable}; run: source .venv/bin/activate (scripts/setup_env.sh makes it)")

if __name__ == "__main__":
    sys.exit(main())
