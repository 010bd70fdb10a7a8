#!/usr/bin/env bash
# Long-VITA 7B, stage 4, isolated (1M: projector and language model learn).
# Packs of 1,048,576 tokens across sources, samples isolated; 8 packs a step, 500 steps.
# tp 4 pp 1 cp 8: 32 devices or a multiple, of 64 GB (NPU) or 96 GB (GPU) each.
#
#   DRY_RUN=1 bash examples/long_vita_7b/stage4_isolated.sh    prints the command, and checks recipe, layout, data and weights
#   bash examples/long_vita_7b/stage4_isolated.sh              trains; the same command continues after a stop
#
# Several nodes: the same on each, with NNODES, NODE_RANK, MASTER_ADDR. Also: NPROC_PER_NODE, MASTER_PORT, DEVICE=auto|npu|cuda|cpu,
# ENGINE=builtin|mindspeed-llm (default on NPUs). Arguments replace settings (train.steps=100); after -- come MindSpeed-LLM's own flags.
set -euo pipefail
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
source "$here/../launch.sh"

launch_stage "$here/stage4_isolated.yaml" mixture stage4 from stage3_isolated language-model Qwen2.5-7B-Instruct "$@"
