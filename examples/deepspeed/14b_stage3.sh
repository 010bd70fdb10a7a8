#!/usr/bin/env bash
# Long-VITA 14B, stage 3 (128K: projector and language model learn) with DeepSpeed and transformers' Trainer.
# Packs of 131,072 tokens across sources, not isolated; 64 packs a step, 1,000 steps.
# cp 8, ZeRO-3: 8 devices or a multiple, of 80 GB each by calculation. Not run on GPUs.
#
#   DRY_RUN=1 bash examples/deepspeed/14b_stage3.sh    prints the command, and checks recipe, layout, DeepSpeed's file, data and weights
#   bash examples/deepspeed/14b_stage3.sh              trains; the same command continues after a stop
#
# Several nodes: the same on each, with NNODES, NODE_RANK, MASTER_ADDR. Also: NPROC_PER_NODE, MASTER_PORT, DEVICE=auto|npu|cuda|cpu,
# DEEPSPEED=zero1|zero2|zero3|FILE (zero3_offload.json keeps the optimizer in host memory). Arguments replace settings (train.steps=100).
set -euo pipefail
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
source "$here/../launch.sh"
export ENGINE=hf DEEPSPEED="${DEEPSPEED:-$here/zero3.json}"

launch_stage "$here/14b_stage3.yaml" mixture stage3 from 14b_stage2/export language-model Qwen2.5-14B-Instruct "$@"
