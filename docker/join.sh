#!/usr/bin/env bash
# Run `sptune` with the given arguments in a container. The driver must run on a node of the Ray cluster, so for a sweep
# or a check of all nodes this container joins the cluster without resources, and leaves it at the end.
#   HEAD=ray-head:6379 join.sh launch demo
set -uo pipefail

case ${1-} in
    launch | resume | doctor) ;;
    *) exec sptune "$@" ;;
esac

log=${TMPDIR:-/tmp}/ray.log
ray start --address="$HEAD" --num-cpus=0 --num-gpus=0 > "$log" 2>&1 || { cat "$log" >&2 && exit 1; }
export RAY_ADDRESS=auto

# Run in the background, so that it gets interrupts only from the trap below: those of a terminal and of `docker stop`.
set -m
sptune "$@" &
driver=$!
trap 'kill -INT "$driver"' INT TERM
# A signal ends `wait` but not the driver, so wait again.
while kill -0 "$driver" 2> /dev/null; do wait "$driver"; done
wait "$driver"
status=$?

# Otherwise Ray expects this node for another half a minute.
ray stop > /dev/null 2>&1
exit "$status"
