#!/usr/bin/env bash
# Sourced by the scripts of this folder: `answer` asks a checkpoint under a layout of this node's devices. NPUs, GPUs and a CPU alike.

source "$(dirname -- "${BASH_SOURCE[0]}")/../launch.sh"

answer() { # TP CP [arguments of vita generate]
    local tp="$1" cp="$2" device="${DEVICE:-auto}" python settings command
    shift 2
    require CHECKPOINT "a native run or step folder, a Hugging Face folder, or MindSpeed-LLM's" PROMPT "the question"
    [ -d "$CHECKPOINT" ] || stop "CHECKPOINT=$CHECKPOINT: no such folder"
    [ "$device" != auto ] || device="$(find_device)"
    case "$device" in npu | cuda | cpu) ;; *) stop "DEVICE=$device; expected auto, npu, cuda or cpu" ;; esac
    python="$(find_python)" || exit
    settings=("DEVICE=$device" "PYTHONPATH=$VITA_ROOT${PYTHONPATH:+:$PYTHONPATH}" "CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}")
    add_device_settings "$device"
    command=(env "${settings[@]}" "$python")
    [ "$((tp * cp))" = 1 ] || command+=(-m torch.distributed.run --standalone --nproc_per_node "$((tp * cp))")
    command+=(-m mindspeed_vita.cli.main generate "$CHECKPOINT" --tp "$tp" --cp "$cp" --prompt "$PROMPT")
    [ -z "${IMAGE:-}" ] || command+=(--image "$IMAGE")
    [ -z "${VIDEO:-}" ] || command+=(--video "$VIDEO")
    command+=("$@")
    if [ "${DRY_RUN:-0}" = 1 ]; then
        printf '%q ' "${command[@]}"
        printf '\n'
        return
    fi
    exec "${command[@]}"
}
