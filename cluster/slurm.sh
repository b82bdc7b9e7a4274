#!/usr/bin/env bash
# One study on a Slurm allocation: Ray on every node, the study on the first. See README.md.
#
#   sbatch cluster/slurm.sh --storage /shared/results --workers 2                          # CPUs
#   sbatch --gpus-per-node=1 cluster/slurm.sh --storage /shared/results --gpus-per-worker 1  # GPUs
#
# Arguments are the study's. A preempted or requeued job resumes. It ends only
# its own processes, with ports and folders of its own, so that nodes may be shared.
#SBATCH --job-name=perpeft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=24G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=perpeft-%j.log
set -euo pipefail

# Where the job was submitted: the clone, with the environment that `make setup` made.
cd "$SLURM_SUBMIT_DIR"
export PATH="$PWD/.venv/bin:$PATH"

# Ten ports per job, below the range that the system assigns itself.
PERPEFT_HEAD=$(hostname)
PERPEFT_PORT=$((20000 + SLURM_JOB_ID % 1000 * 10))
RAY_ADDRESS="$PERPEFT_HEAD:$PERPEFT_PORT"
export PERPEFT_HEAD PERPEFT_PORT RAY_ADDRESS RAY_USAGE_STATS_ENABLED=0

# A token that only this job's processes know; Slurm hands the environment to its tasks.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

# Run by every task; task 0 is on this host. Paths of Ray's sockets must be short, hence /tmp.
start_ray() {
    local options=(
        --block
        --num-cpus="${SLURM_CPUS_PER_TASK:-1}"
        --num-gpus="${SLURM_GPUS_ON_NODE:-0}"
        --dashboard-agent-listen-port=$((PERPEFT_PORT + 3 + SLURM_PROCID % 5))
    )
    if [ "$SLURM_PROCID" -eq 0 ]; then
        exec ray start --head --port="$PERPEFT_PORT" --dashboard-port=$((PERPEFT_PORT + 1)) \
            --dashboard-host=127.0.0.1 --ray-client-server-port=$((PERPEFT_PORT + 2)) \
            --temp-dir="/tmp/perpeft-$SLURM_JOB_ID" "${options[@]}"
    fi
    wait_for_head
    exec ray start --address="$RAY_ADDRESS" "${options[@]}"
}
wait_for_head() {
    until (exec 3<> "/dev/tcp/$PERPEFT_HEAD/$PERPEFT_PORT") 2> /dev/null; do sleep 1; done
}
export -f start_ray wait_for_head

srun --kill-on-bad-exit=1 bash -c start_ray &
ray_nodes=$!
wait_for_head &
waiting=$!
end_ray() {
    kill "$ray_nodes" "$waiting" 2> /dev/null || true
    wait
    srun rm -rf "/tmp/perpeft-$SLURM_JOB_ID"
}
trap end_ray EXIT

wait -n "$ray_nodes" "$waiting" || { echo "Ray did not start" >&2; exit 1; }

# The other nodes join within a minute; otherwise the job names the missing ones and ends.
for attempt in 1 2 3 4 5 6; do
    status=0
    perpeft doctor "$@" || status=$?
    if [ "$status" -ne 1 ] || [ "$attempt" -eq 6 ]; then break; fi
    sleep 10
done
if [ "$status" -ne 0 ]; then exit "$status"; fi

perpeft study "$@"
