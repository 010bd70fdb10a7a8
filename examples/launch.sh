#!/usr/bin/env bash
# Sourced by the stage scripts: `require` names every variable that is missing, `launch` starts this node's part of a run with torchrun.

VITA_ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"

stop() {
    echo "$0: $1" >&2
    exit 2
}

require() { # NAME MEANING [NAME MEANING ...]
    local missing=""
    while [ $# -gt 0 ]; do
        [ -n "${!1:-}" ] || missing+=$'\n'"  $1: $2"
        shift 2
    done
    [ -z "$missing" ] || stop "set these environment variables first:$missing"
}

find_device() {
    if npu-smi info >/dev/null 2>&1; then
        echo npu
    elif nvidia-smi -L 2>/dev/null | grep -q GPU; then
        echo cuda
    else
        echo cpu
    fi
}

count_devices() { # DEVICE
    local visible=""
    [ "$1" != npu ] || visible="${ASCEND_RT_VISIBLE_DEVICES:-}"
    [ "$1" != cuda ] || visible="${CUDA_VISIBLE_DEVICES:-}"
    if [ -n "$visible" ]; then
        tr ',' '\n' <<<"$visible" | wc -l
        return
    fi
    case "$1" in
        npu) find /dev -maxdepth 1 -name 'davinci[0-9]*' | wc -l ;;
        cuda) nvidia-smi -L | grep -c GPU ;;
        cpu) echo 1 ;;
    esac
}

gloo_interface() { # the interface that HCCL or NCCL was told, where it is the whole name of one; their =eth0, ^lo and prefixes mean nothing to gloo
    local name
    for name in "${HCCL_SOCKET_IFNAME:-}" "${NCCL_SOCKET_IFNAME:-}"; do
        if [[ "$name" =~ ^[A-Za-z0-9][A-Za-z0-9_.-]*$ ]] && [ -d "/sys/class/net/$name" ]; then
            echo "$name"
            return
        fi
    done
}

launch() { # RECIPE [key=value ...] [-- MindSpeed-LLM flags]
    local recipe="$1" device="${DEVICE:-auto}" engine nodes="${NNODES:-1}" processes python where settings command name gloo
    shift
    [ "$device" != auto ] || device="$(find_device)"
    case "$device" in npu | cuda | cpu) ;; *) stop "DEVICE=$device; expected auto, npu, cuda or cpu" ;; esac
    engine="${ENGINE:-$([ "$device" = npu ] && echo mindspeed-llm || echo builtin)}"
    case "$engine:$device" in
        builtin:* | mindspeed-llm:npu) ;;
        mindspeed-llm:*) stop "ENGINE=mindspeed-llm runs on NPUs, the device here is $device; use ENGINE=builtin" ;;
        *) stop "ENGINE=$engine; expected builtin or mindspeed-llm" ;;
    esac
    processes="${NPROC_PER_NODE:-$(count_devices "$device" || true)}"
    for name in "NNODES=$nodes" "NPROC_PER_NODE=$processes"; do
        [[ "${name#*=}" =~ ^[1-9][0-9]*$ ]] || stop "$name; expected a whole number from 1 up"
    done
    where=(--standalone)
    if [ "$nodes" -gt 1 ]; then
        require NODE_RANK "this node's number, from 0 to NNODES-1" MASTER_ADDR "address of node 0"
        where=(--node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-34567}" --rdzv_conf timeout=7200)
    fi
    python="${PYTHON:-$VITA_ROOT/.venv/bin/python}"
    [ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3

    settings=("DEVICE=$device" "PYTHONPATH=$VITA_ROOT${PYTHONPATH:+:$PYTHONPATH}" "CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}")
    for name in DATA_ROOT TOKENIZER BASE_WEIGHTS INIT_FROM OUTPUT_ROOT MIXTURE; do
        [ -z "${!name:-}" ] || settings+=("$name=${!name}")
    done
    gloo="${GLOO_SOCKET_IFNAME:-$(gloo_interface)}"
    [ "$nodes" -eq 1 ] || [ -z "$gloo" ] || settings+=("GLOO_SOCKET_IFNAME=$gloo")
    case "$device" in
        npu) settings+=("PYTORCH_NPU_ALLOC_CONF=${PYTORCH_NPU_ALLOC_CONF:-expandable_segments:True}"
            "HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-7200}" "HCCL_EXEC_TIMEOUT=${HCCL_EXEC_TIMEOUT:-7200}") ;;
        cuda) settings+=("PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}") ;;
        cpu) settings+=("OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}") ;;
    esac
    command=(env "${settings[@]}" "$python" -m torch.distributed.run --nnodes "$nodes" --nproc_per_node "$processes" "${where[@]}"
        -m mindspeed_vita.cli.main train)
    [ "$engine" = builtin ] || command+=(--engine "$engine")
    command+=("$recipe" "$@")
    if [ "$engine" = mindspeed-llm ] && [[ " $* " != *" -- "* ]]; then
        # its default norm is several fp32 kernels; flags of the user's own stand instead of this one
        [[ " ${command[*]} " = *" -- "* ]] || command+=(--)
        command+=(--use-fused-rmsnorm)
    fi

    if [ "${DRY_RUN:-0}" != 1 ]; then
        exec "${command[@]}"
    fi
    printf '%q ' "${command[@]}"
    printf '\n'
    exec env "${settings[@]}" "$python" -m mindspeed_vita.cli.main check --engine "$engine" --processes $((nodes * processes)) "$recipe" "$@"
}
