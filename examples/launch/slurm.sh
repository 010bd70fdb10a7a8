#!/usr/bin/env bash
# A stage as a Slurm job: one task a node, each of which starts torchrun. A failed or pre-empted job goes back to the queue and continues.
#
#   sbatch --nodes 16 --export ALL,DATA_ROOT=...,TOKENIZER=...,OUTPUT_ROOT=... examples/launch/slurm.sh examples/long_vita_14b/stage3.sh [train.steps=100 ...]
#
# Ask for devices as your cluster has them (--gres=gpu:8, --gres=npu:8, --partition). RESTARTS (default 10) is how often the job may start again.
# Logs: slurm-JOB.out of the job, and LOG_DIR or OUTPUT_ROOT/logs with one file a node.
# Exit status: that of the first node that failed.
#SBATCH --job-name=vita
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@1200
# --signal: 20 minutes before the time limit, every task gets SIGTERM. The run saves, ends, and continues as a new job of the same number.
set -uo pipefail

stop() {
    echo "slurm.sh: $1" >&2
    exit 2
}

[ $# -gt 0 ] || stop "which stage? e.g. sbatch examples/launch/slurm.sh examples/long_vita_14b/stage3.sh"
[ -f "$1" ] || stop "$1 does not exist; give the stage script as seen from $PWD, where sbatch was called"
[ -n "${SLURM_JOB_ID:-}" ] || stop "this is a Slurm job; start it with sbatch"

MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
# Jobs that share a node, one after the other or at once, use different ports.
export MASTER_ADDR NNODES="$SLURM_JOB_NUM_NODES" MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}"
first="$(mktemp -u "${SLURM_SUBMIT_DIR:-$PWD}/.slurm-$SLURM_JOB_ID-first-XXXXXX")"
trap 'rm -f "$first"' EXIT

# A setting that is wrong would fail again at every start: look before the devices wait.
DRY_RUN=1 NODE_RANK=0 bash "$@" >/dev/null || stop "the check of $1 failed, see above; nothing was started"

# Noclobber lets the first node alone write its status.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 --wait=1800 bash -c '
    first="$1"
    shift
    export NODE_RANK="$SLURM_NODEID"
    bash "$@" &
    trap "kill -TERM $!" TERM
    wait $!
    status=$?
    [ "$status" -le 128 ] || { wait $!; status=$?; }
    [ "$status" -eq 0 ] || { set -C; echo "$status $SLURM_NODEID $(hostname)" >"$first"; } 2>/dev/null
    exit "$status"
' vita "$first" "$@"
status=$?
[ "$status" -eq 0 ] && exit 0

if [ -s "$first" ]; then
    read -r status node host <"$first"
    echo "slurm.sh: node $node ($host) failed first, with status $status" >&2
fi
if [ "$status" -eq 2 ]; then # docs/guides/operations.md
    echo "slurm.sh: the log says how to mend it; the job does not go back to the queue" >&2
elif [ "${SLURM_RESTART_COUNT:-0}" -lt "${RESTARTS:-10}" ]; then
    echo "slurm.sh: back to the queue, start $((${SLURM_RESTART_COUNT:-0} + 2)) of at most $((${RESTARTS:-10} + 1))" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
