#!/usr/bin/env bash
# Long-VITA 14B, stage 2 (general: tower, projector and language model learn).
# Packs of 16,384 tokens of one source, samples isolated; 528 packs a step, 5,000 steps.
# tp 8 pp 1 cp 1: 8 devices or a multiple, of 64 GB (NPU) or 96 GB (GPU) each.
#
#   DRY_RUN=1 bash examples/long_vita_14b/stage2.sh    prints the command, and checks recipe, layout, data and weights
#   bash examples/long_vita_14b/stage2.sh              trains; the same command continues after a stop
#
# Several nodes: the same on each, with NNODES, NODE_RANK, MASTER_ADDR. Also: NPROC_PER_NODE, MASTER_PORT, DEVICE=auto|npu|cuda|cpu,
# ENGINE=builtin|mindspeed-llm (default on NPUs). Arguments replace settings (train.steps=100); after -- come MindSpeed-LLM's own flags.
set -euo pipefail
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
source "$here/../launch.sh"

launch_stage "$here/stage2.yaml" mixture stage2 from stage1 language-model Qwen2.5-14B-Instruct "$@"
