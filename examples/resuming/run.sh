#!/usr/bin/env bash
# Kill a run in its second iteration, go on with the same command, then extend it:
#   ITERATIONS=6 ./run.sh
# The arguments are more of those of `rlcm loop`. WORK: where the run goes.
set -euo pipefail
run=${WORK:-runs/resuming}/run
iterations=${ITERATIONS:-6}
command=(rlcm loop --task compression --run "$run" --iterations "$iterations" "$@")

"${command[@]}" &
loop=$!
until [ -e "$run/checkpoints/000001/complete.json" ]; do
    kill -0 "$loop" || wait "$loop" # a loop that failed ends this, too
    sleep 0.1
done
kill -9 "$loop" || true # it may have been quicker
wait "$loop" || echo "killed"

"${command[@]}"
rlcm loop --run "$run" --iterations $((2 * iterations))
rlcm inspect "$run" --verify
