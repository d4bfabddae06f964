#!/bin/bash
# A sweep on a cluster of Slurm: Ray's head and workers on the nodes of one job, the sweep, and the end of all of it.
#
#     sbatch --nodes=4 --cpus-per-task=16 --gpus-per-node=1 deploy/slurm.sh sweeps/abid.yaml [options of binsweep sweep]
#
# Before the job's time is over, or when it is preempted, the sweep ends as by Ctrl-C; requeued, it goes on from there.
#SBATCH --job-name=binsweep
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# To this script alone, that many seconds before the time is over.
#SBATCH --signal=B:USR1@180
set -euo pipefail

: "${1:?usage: sbatch deploy/slurm.sh SPEC [options of binsweep sweep]}"
: "${SLURM_JOB_ID:?this script is for sbatch}"
cd "${SLURM_SUBMIT_DIR:-$PWD}"
# Both must be on a disk that all nodes see: the environment, and the home, in which a requeued job finds its sweep.
export PATH="${BINSWEEP_VENV:-$PWD/.venv}/bin:$PATH" BINSWEEP_HOME="${BINSWEEP_HOME:-$PWD/.binsweep}"
# Ray's own files, on each node's own disk. The name is short: sockets in it may not have long ones.
export RAY_TMPDIR="/tmp/binsweep-$SLURM_JOB_ID" RAY_USAGE_STATS_ENABLED=0
# A secret of this job, so that no other user of these nodes can use its Ray. srun hands on the environment.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

cpus=${SLURM_CPUS_PER_TASK:-1}
port=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a node have different ones
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
step=(srun --ntasks-per-node=1 --cpus-per-task="$cpus") # an array, so that in the background $! is srun itself
sweep="" ended_by=""

stop() { # the sweep ends at its next epoch, with all files complete
    ended_by=$1
    if [ -n "$sweep" ]; then kill -TERM "$sweep" 2>/dev/null || true; else exit 130; fi
}

end_all() {
    local code=$?
    trap '' TERM USR1
    local steps
    steps=$(jobs -p)
    if [ -n "$steps" ]; then
        # shellcheck disable=SC2086
        kill -TERM $steps 2>/dev/null || true # srun passes it on to Ray
        wait || true
    fi
    "${step[@]}" --nodes="${#nodes[@]}" --ntasks="${#nodes[@]}" --nodelist="$SLURM_JOB_NODELIST" rm -rf "$RAY_TMPDIR" || true
    if [ "$ended_by" = time ] && [ "$code" = 130 ]; then
        echo "slurm.sh: the time is over; the job is queued again, and the sweep will go on"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$code"
}

trap end_all EXIT
trap 'stop time' USR1
trap 'stop TERM' TERM # preempted or cancelled: Slurm itself knows whether to queue the job again

ip=$("${step[@]}" --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1; exit}')
echo "slurm.sh: job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}: ${#nodes[@]} nodes with $cpus CPUs each, Ray's head is $ip:$port"
mkdir -p "$RAY_TMPDIR"
"${step[@]}" --nodes=1 --ntasks=1 --nodelist="$head" ray start --head --node-ip-address="$ip" --port="$port" --num-cpus="$cpus" \
    --include-dashboard=false --disable-usage-stats --block &
if [ "${#nodes[@]}" -gt 1 ]; then
    # --block ends if the head does not answer within a minute, so that is waited for first.
    timeout 300 bash -c "until (: </dev/tcp/$ip/$port) 2>/dev/null; do sleep 1; done"
    others=$((${#nodes[@]} - 1))
    "${step[@]}" --nodes="$others" --ntasks="$others" --exclude="$head" \
        ray start --address="$ip:$port" --num-cpus="$cpus" --disable-usage-stats --block &
fi
timeout 600 python - "$ip:$port" "${#nodes[@]}" <<'PYTHON' &
import sys, time
import ray

address, wanted = sys.argv[1], int(sys.argv[2])
while True:
    try:
        ray.init(address, logging_level="ERROR")
        break
    except ConnectionError:
        time.sleep(1)
while sum(node["Alive"] for node in ray.nodes()) < wanted:
    time.sleep(1)
PYTHON
wait $! # in the background, because a signal's trap waits for what is in the foreground

binsweep sweep "$@" --address "$ip:$port" &
sweep=$!
code=0
wait "$sweep" || code=$?
if [ -n "$ended_by" ]; then # the signal ended `wait`, not yet the sweep
    code=0
    wait "$sweep" || code=$?
fi
exit "$code"
