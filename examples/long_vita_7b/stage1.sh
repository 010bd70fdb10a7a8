#!/usr/bin/env bash
# Long-VITA 7B, stage 1 (alignment: only the projector learns).
# Packs of 32,768 tokens of one source, samples isolated; 528 packs a step, 1,000 steps.
# tp 4 pp 1 cp 1: 4 devices or a multiple, of 64 GB (NPU) or 96 GB (GPU) each.
#
#   DRY_RUN=1 bash examples/long_vita_7b/stage1.sh    prints the command, and checks recipe, layout, data and weights
#   bash examples/long_vita_7b/stage1.sh              trains; the same command continues after a stop
#
# Several nodes: the same on each, with NNODES, NODE_RANK, MASTER_ADDR. Also: NPROC_PER_NODE, MASTER_PORT, DEVICE=auto|npu|cuda|cpu,
# ENGINE=builtin|mindspeed-llm (default on NPUs). Arguments replace settings (train.steps=100); after -- come MindSpeed-LLM's own flags.
set -euo pipefail
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
source "$here/../launch.sh"

launch_stage "$here/stage1.yaml" mixture stage1 from base language-model Qwen2.5-7B-Instruct "$@"
