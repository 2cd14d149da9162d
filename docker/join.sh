#!/usr/bin/env bash
# The command line in a container: `sptune` with these arguments. A driver has to be on one of Ray's nodes, so for a
# sweep, or to ask all nodes how they are, this container joins as one that has nothing, and leaves at the end.
#   HEAD=ray-head:6379 join.sh launch demo
set -uo pipefail

case ${1-} in
    launch | resume | doctor) ;;
    *) exec sptune "$@" ;;
esac

log=${TMPDIR:-/tmp}/ray.log
ray start --address="$HEAD" --num-cpus=0 --num-gpus=0 > "$log" 2>&1 || { cat "$log" >&2 && exit 1; }
export RAY_ADDRESS=auto

# In the background, where it hears interrupts from here alone: a terminal's, and those of `docker stop`.
set -m
sptune "$@" &
driver=$!
trap 'kill -INT "$driver"' INT TERM
# A signal ends `wait`, not what is waited for.
while kill -0 "$driver" 2> /dev/null; do wait "$driver"; done
wait "$driver"
status=$?

ray stop > /dev/null 2>&1 # otherwise Ray misses it for half a minute
exit "$status"
