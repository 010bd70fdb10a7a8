#!/usr/bin/env bash
# Long-VITA 14B, stage 1 (alignment: only the projector learns) with DeepSpeed and transformers' Trainer.
# Packs of 32,768 tokens of one source, samples isolated; 528 packs a step, 1,000 steps.
# cp 1, ZeRO-2: 8 to 16 devices, a power of two, of 80 GB each by calculation. Not run on GPUs.
#
#   DRY_RUN=1 bash examples/deepspeed/14b_stage1.sh    prints the command, and checks recipe, layout, DeepSpeed's file, data and weights
#   bash examples/deepspeed/14b_stage1.sh              trains; the same command continues after a stop
#
# Several nodes: the same on each, with NNODES, NODE_RANK, MASTER_ADDR. Also: NPROC_PER_NODE, MASTER_PORT, DEVICE=auto|npu|cuda|cpu,
# DEEPSPEED=zero1|zero2|zero3|FILE (zero3_offload.json keeps the optimizer in host memory). Arguments replace settings (train.steps=100).
set -euo pipefail
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
source "$here/../launch.sh"
export ENGINE=hf DEEPSPEED="${DEEPSPEED:-$here/zero2.json}"

launch_stage "$here/14b_stage1.yaml" mixture stage1 from base language-model Qwen2.5-14B-Instruct "$@"
