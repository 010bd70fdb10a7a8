#!/usr/bin/env bash
# Sourced by the stage scripts: `launch_stage` names every variable that is missing, `launch` starts this node's part of a run with torchrun.
# mindspeed_vita.cli.torchrun is torchrun, and ends with the run's own exit status (docs/guides/operations.md).

VITA_ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"

# Set on NPUs, where the shell has not set them. docs/guides/ascend_settings.md has the reasons at length; two further time-outs follow below.
ASCEND_DEFAULTS=(
    PYTORCH_NPU_ALLOC_CONF=expandable_segments:True # packs differ in shape; segments that grow leave fewer gaps
    TASK_QUEUE_ENABLE=2                             # a second thread starts the kernels, and gets their workspace
    CPU_AFFINITY_CONF=1                             # each NPU's process keeps to its share of the cores, with its loaders
    COMBINED_ENABLE=1                               # two view operations in a row become one copy
    ACLNN_CACHE_LIMIT=100000                        # kernels prepared for a shape: packs bring more shapes than the usual 10,000
    STREAMS_PER_DEVICE=32                           # transfers of many groups get streams of their own
    MULTI_STREAM_MEMORY_REUSE=1                     # memory of a transfer is free once it was waited for; 2 keeps it longer
    HCCL_CONNECT_TIMEOUT=7200                       # seconds: nodes start late, rank 0 makes the index
    HCCL_EXEC_TIMEOUT=7200                          # seconds: one rank may write a checkpoint meanwhile
    HCCL_BUFFSIZE=200                               # MB; every group takes twice this from the NPU's memory
    HCCL_IF_BASE_PORT=25800                         # this port and the next 31; the usual 60000 can be taken by any outgoing connection
    HCCL_DETERMINISTIC=false                        # true: sums in the same order each time, slower
    NPU_ASD_ENABLE=0                                # 1 to 3: look for silent hardware errors in gradients; takes memory and time
)

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

find_python() { # the one of PYTHON, else of .venv, else the shell's
    local python="${PYTHON:-$VITA_ROOT/.venv/bin/python}"
    if [ -z "${PYTHON:-}" ] && [ ! -x "$python" ]; then
        python=python3
        "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' 2>/dev/null \
            || stop "$(command -v python3 || echo python3) has no torch; run: bash scripts/setup_env.sh (it makes .venv), or name another Python in PYTHON"
    fi
    echo "$python"
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

add_device_settings() { # DEVICE: appends what the device needs to the caller's array `settings`
    local ascend
    case "$1" in
        npu)
            ascend="$(ascend_settings)" || exit
            mapfile -t -O "${#settings[@]}" settings <<<"$ascend"
            ;;
        cuda) settings+=("PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}") ;;
        cpu) settings+=("OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}") ;;
    esac
}

ascend_settings() { # a NAME=value a line
    local default name wait
    for default in "${ASCEND_DEFAULTS[@]}"; do
        name="${default%%=*}"
        echo "$name=${!name:-${default#*=}}"
    done
    # Whoever waits for a collective must not give up before the collective does.
    wait="${HCCL_EXEC_TIMEOUT:-7200}"
    [[ "$wait" =~ ^[0-9]+$ ]] || stop "HCCL_EXEC_TIMEOUT=$wait; expected whole seconds, or 0 for no limit"
    wait=$((10#$wait ? 10#$wait + 60 : 0))
    echo "HCCL_EVENT_TIMEOUT=${HCCL_EVENT_TIMEOUT:-$wait}"
    if [ "$wait" -gt 0 ] || [ -n "${ACL_DEVICE_SYNC_TIMEOUT:-}" ]; then # it takes no 0
        echo "ACL_DEVICE_SYNC_TIMEOUT=${ACL_DEVICE_SYNC_TIMEOUT:-$wait}"
    fi
}

raise_open_files() {
    local now most wanted=32768 # loaders pass packs on through open files: the usual 1,024 is too low for several of them
    now="$(ulimit -Sn)" most="$(ulimit -Hn)"
    if [ "$now" = unlimited ] || [ "$now" -ge "$wanted" ]; then
        return
    fi
    if [ "$most" != unlimited ] && [ "$most" -lt "$wanted" ]; then
        echo "$0: this shell may open at most $most files, $wanted are advised: docs/guides/ascend_settings.md" >&2
        wanted="$most"
    fi
    ulimit -Sn "$wanted"
}

log_to() { # FILE COMMAND: from here on what is printed also goes to the file
    if ! { mkdir -p "$(dirname "$1")" && : >>"$1"; }; then
        stop "cannot write the log $1; LOG_DIR names another folder"
    fi
    printf '\n# %s on %s: %s\n' "$(date '+%F %T')" "$(hostname)" "$2" >>"$1"
    # -i: Ctrl-C ends the training, whose last words must still be written
    exec > >(tee -ai "$1") 2> >(tee -ai "$1" >&2)
}

launch() { # RECIPE [key=value ...] [-- MindSpeed-LLM flags]
    local recipe="$1" device="${DEVICE:-auto}" engine options nodes="${NNODES:-1}" processes python where settings command name gloo logs
    shift
    [ "$device" != auto ] || device="$(find_device)"
    case "$device" in npu | cuda | cpu) ;; *) stop "DEVICE=$device; expected auto, npu, cuda or cpu" ;; esac
    engine="${ENGINE:-$([ "$device" = npu ] && echo mindspeed-llm || echo builtin)}"
    case "$engine:$device" in
        builtin:* | hf:* | mindspeed-llm:npu) ;;
        mindspeed-llm:*) stop "ENGINE=mindspeed-llm runs on NPUs, the device here is $device; use ENGINE=builtin" ;;
        *) stop "ENGINE=$engine; expected builtin, mindspeed-llm or hf" ;;
    esac
    options=(--engine "$engine")
    [ -z "${DEEPSPEED:-}" ] || options+=(--deepspeed "$DEEPSPEED") # vita refuses it with another engine
    [ "${FSDP:-0}" != 1 ] || options+=(--fsdp)
    processes="${NPROC_PER_NODE:-$(count_devices "$device" || true)}"
    if [ -z "${NPROC_PER_NODE:-}" ] && [ "${processes:-0}" = 0 ]; then
        stop "found no device of kind $device on this machine; start it where the devices are, or say in NPROC_PER_NODE how many the nodes have (DRY_RUN=1 needs no device)"
    fi
    for name in "NNODES=$nodes" "NPROC_PER_NODE=$processes"; do
        [[ "${name#*=}" =~ ^[1-9][0-9]*$ ]] || stop "$name; expected a whole number from 1 up"
    done
    where=(--standalone)
    if [ "$nodes" -gt 1 ]; then
        require NODE_RANK "this node's number, from 0 to NNODES-1" MASTER_ADDR "address of node 0"
        where=(--node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-34567}" --rdzv_conf timeout=7200)
    fi
    python="$(find_python)" || exit

    settings=("DEVICE=$device" "PYTHONPATH=$VITA_ROOT${PYTHONPATH:+:$PYTHONPATH}" "CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}")
    for name in DATA_ROOT TOKENIZER BASE_WEIGHTS INIT_FROM OUTPUT_ROOT MIXTURE; do
        [ -z "${!name:-}" ] || settings+=("$name=${!name}")
    done
    # A stop signal lets the built-in engine finish its step and save. torchrun kills its ranks 30 s after the signal; releases of torch that
    # read this variable (2.13 does; 2.7.1 does not) give them that many seconds.
    settings+=("TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-1800}")
    gloo="${GLOO_SOCKET_IFNAME:-$(gloo_interface)}"
    [ "$nodes" -eq 1 ] || [ -z "$gloo" ] || settings+=("GLOO_SOCKET_IFNAME=$gloo")
    add_device_settings "$device"
    command=(env "${settings[@]}" "$python" -m mindspeed_vita.cli.torchrun --nnodes "$nodes" --nproc_per_node "$processes" "${where[@]}"
        -m mindspeed_vita.cli.main train)
    [ "${options[*]}" = "--engine builtin" ] || command+=("${options[@]}")
    command+=("$recipe" "$@")
    if [ "$engine" = mindspeed-llm ] && [[ " $* " != *" -- "* ]]; then
        # its default norm is several fp32 kernels; flags of the user's own stand instead of this one
        [[ " ${command[*]} " = *" -- "* ]] || command+=(--)
        command+=(--use-fused-rmsnorm)
    fi

    if [ "${DRY_RUN:-0}" != 1 ]; then
        [ "$device" != npu ] || raise_open_files
        logs="${LOG_DIR:-${OUTPUT_ROOT:+$OUTPUT_ROOT/logs}}"
        [ -z "$logs" ] || log_to "$logs/$(basename "$recipe" .yaml)-node${NODE_RANK:-0}.log" "$(printf '%q ' "${command[@]}")"
        echo "$0: starting $processes process(es) on $device; the first lines come when torch is loaded" >&2
        exec "${command[@]}"
    fi
    printf '%q ' "${command[@]}"
    printf '\n'
    exec env "${settings[@]}" "$python" -m mindspeed_vita.cli.main check "${options[@]}" --processes $((nodes * processes)) "$recipe" "$@"
}

launch_stage() { # RECIPE mixture NAME from base|STAGE language-model NAME [key=value ...] [-- MindSpeed-LLM flags]
    local recipe="$1" stage wanted
    stage="$(basename "$recipe" .yaml)"
    export MIXTURE="${MIXTURE:-$(dirname "$recipe")/../mixtures/$3.yaml}"
    wanted=(
        DATA_ROOT "the folder that holds datasets/ (docs/guides/data.md)"
        TOKENIZER "the folder of $7, for its tokenizer"
    )
    if [ "$5" = base ]; then
        wanted+=(BASE_WEIGHTS "what vita convert --from $7 --vision InternViT-300M-448px --to native --output DIR wrote")
    else
        export INIT_FROM="${INIT_FROM:-${OUTPUT_ROOT:-}/$5}" # weights to start from
    fi
    require "${wanted[@]}" OUTPUT_ROOT "one folder for all stages; this one writes $stage/ in it"
    shift 7
    launch "$recipe" "$@"
}
