#!/usr/bin/env bash
# Long-VITA 72B, stage 3, isolated (128K: projector and language model learn).
# Packs of 131,072 tokens across sources, samples isolated; 64 packs a step, 1,000 steps.
# tp 8 pp 8 cp 2: 128 devices or a multiple, of 64 GB (NPU) or 96 GB (GPU) each.
#
#   DRY_RUN=1 bash examples/long_vita_72b/stage3_isolated.sh    prints the command, and checks recipe, layout, data and weights
#   bash examples/long_vita_72b/stage3_isolated.sh              trains; the same command continues after a stop
#
# Several nodes: the same on each, with NNODES, NODE_RANK, MASTER_ADDR. Also: NPROC_PER_NODE, MASTER_PORT, DEVICE=auto|npu|cuda|cpu,
# ENGINE=builtin|mindspeed-llm (default on NPUs). Arguments replace settings (train.steps=100); after -- come MindSpeed-LLM's own flags.
set -euo pipefail
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
source "$here/../launch.sh"

launch_stage "$here/stage3_isolated.yaml" mixture stage3 from stage2 language-model Qwen2.5-72B-Instruct "$@"
