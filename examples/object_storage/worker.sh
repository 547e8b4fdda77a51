#!/usr/bin/env bash
# Draw and score this worker's share of each iteration, until ITERATIONS are trained. On each of sixteen machines:
#   RUN=s3://bucket/run ITERATIONS=40 WORKER=3/16 ./worker.sh --task compression --set sample.shards=16
# WORKER=auto, the default, reads Slurm's or torchrun's variables. The arguments are those of `rlcm sample`.
set -euo pipefail
here=$(dirname "$0")
source "$here/progress.sh"
while [ "$(trained)" -lt "$ITERATIONS" ]; do
    rlcm sample --run "$RUN" --worker "${WORKER:-auto}" --quiet "$@"
    rlcm score --run "$RUN" --worker "${WORKER:-auto}" --quiet
    sleep "${PAUSE:-20}"
done
