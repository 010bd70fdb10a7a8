#!/usr/bin/env bash
# Long-VITA 7B, stage 2 (general: tower, projector and language model learn) with DeepSpeed and transformers' Trainer.
# Packs of 16,384 tokens of one source, samples isolated; 528 packs a step, 5,000 steps.
# cp 2, ZeRO-3: 8 to 32 devices, a power of two, of 80 GB each by calculation. Not run on GPUs.
#
#   DRY_RUN=1 bash examples/deepspeed/7b_stage2.sh    prints the command, and checks recipe, layout, DeepSpeed's file, data and weights
#   bash examples/deepspeed/7b_stage2.sh              trains; the same command continues after a stop
#
# Several nodes: the same on each, with NNODES, NODE_RANK, MASTER_ADDR. Also: NPROC_PER_NODE, MASTER_PORT, DEVICE=auto|npu|cuda|cpu,
# DEEPSPEED=zero1|zero2|zero3|FILE (zero3_offload.json keeps the optimizer in host memory). Arguments replace settings (train.steps=100).
set -euo pipefail
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
source "$here/../launch.sh"
export ENGINE=hf DEEPSPEED="${DEEPSPEED:-$here/zero3.json}"

launch_stage "$here/7b_stage2.yaml" mixture stage2 from 7b_stage1/export language-model Qwen2.5-7B-Instruct "$@"
