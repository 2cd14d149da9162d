#!/usr/bin/env bash
# A sweep on a Slurm cluster with any time limit: the job submits itself again until the sweep is done.
#   sbatch --nodes=4 --gpus-per-node=4 --cpus-per-task=32 --time=24:00:00 docker/slurm.sh my_spec.yaml
# Options of sbatch on the command line override the lines below; arguments after the script are for `sptune launch`.
# `sptune` must be on the PATH, and SPTUNE_HOME a folder that all nodes see (default: sptune-home in the current folder).
# On several nodes, or with the home on a network file system, SPTUNE_STUDIES and MLFLOW_TRACKING_URI must name servers.
# Some minutes before the time limit the sweep is interrupted: no trial starts, and running ones save at their next epoch.
# The job is not submitted again if the sweep is done or needs a person: a mistake, a budget, a pause, `sptune stop`.
#SBATCH --job-name=sptune
#SBATCH --output=sptune-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
set -euo pipefail
# Job control, so that background processes receive interrupts.
set -m
# No Python below imports from the folder that the job was submitted in.
export PYTHONSAFEPATH=1

if (($# == 0)); then
    echo "usage: sbatch [options] docker/slurm.sh SPEC" >&2
    exit 2
fi

# At the limit, interrupt the driver. Interrupt it again, which stops it immediately, if an epoch takes too long.
again='' driver='' second=''
# shellcheck disable=SC2329 # the trap calls it
at_the_limit() {
    again=yes
    if [[ $driver ]]; then
        kill -INT "$driver" || true
        { sleep 120 && kill -INT "$driver"; } &
        second=$!
    fi
}
trap at_the_limit USR1
trap '[[ ! $driver ]] || kill -INT "$driver"' TERM

# A Ray cluster for this job only, on free ports and with its own token: other jobs may run on the same nodes.
read -r ip port client_port < <(python -c "
import socket
from ray.util import get_node_ip_address
held = [socket.create_server(('', 0)) for _ in range(2)]
print(get_node_ip_address(), *(each.getsockname()[1] for each in held))")
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# The driver has ended when Ray stops. Draining would wait for a head that stops at the same time.
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
export HEAD=$ip:$port CLIENT_PORT=$client_port CPUS=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}
export RAY_FOLDER=/tmp/ray-$SLURM_JOB_ID
export SPTUNE_HOME=${SPTUNE_HOME:-$PWD/sptune-home} SPTUNE_CACHE=${SPTUNE_CACHE:-/tmp/sptune-cache-$(id -u)}

# Script of each node.
node=$(
    cat << 'END'
trap 'rm -rf "$RAY_FOLDER-$SLURM_NODEID"' EXIT
# Exit after Ray has ended.
trap exit TERM
options=(--block --num-cpus="$CPUS" --object-store-memory=500000000 --temp-dir="$RAY_FOLDER-$SLURM_NODEID")
if ((SLURM_NODEID == 0)); then
    ray start --head --port="${HEAD##*:}" --ray-client-server-port="$CLIENT_PORT" --include-dashboard=false "${options[@]}"
else
    until ray health-check --address="$HEAD"; do sleep 2; done 2> /dev/null
    ray start --address="$HEAD" "${options[@]}"
fi
END
)
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="$CPUS" --kill-on-bad-exit=0 bash -c "$node" \
    > "sptune-$SLURM_JOB_ID-ray.log" 2>&1 &
nodes=$!

# Wait for all nodes, five minutes at most.
until ray health-check --address="$HEAD" 2> /dev/null; do
    kill -0 "$nodes" 2> /dev/null || { cat "sptune-$SLURM_JOB_ID-ray.log" >&2 && exit 1; }
    sleep 2
done
python - "$HEAD" "$SLURM_JOB_NUM_NODES" << 'END'
import sys, time
import ray

ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
deadline = time.monotonic() + 300
while (there := sum(node["Alive"] for node in ray.nodes())) < int(sys.argv[2]) and time.monotonic() < deadline:
    time.sleep(1)
print(f"Ray has {there} of {sys.argv[2]} nodes", flush=True)
END

if [[ ! $again ]]; then
    sptune launch --address="$HEAD" "$@" &
    driver=$!
    # A signal ends `wait` but not the driver, so wait again.
    while kill -0 "$driver" 2> /dev/null; do wait "$driver" || true; done
fi
status=130
[[ ! $driver ]] || { status=0 && wait "$driver" || status=$?; }
driver=''
[[ ! $second ]] || kill -- "-$second" 2> /dev/null || true
scancel --signal=TERM "$SLURM_JOB_ID.0" || true
timeout 60 tail --pid="$nodes" -f /dev/null || true

# A status above 128 means that the sweep was interrupted.
if [[ $again ]] && ((status > 128)); then
    echo "job $SLURM_JOB_ID: interrupted at its time limit, submitted again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
