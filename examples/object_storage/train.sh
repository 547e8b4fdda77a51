#!/usr/bin/env bash
# Train on each iteration as soon as all of its shards are sampled and scored. On one machine:
#   RUN=s3://bucket/run ITERATIONS=40 ./train.sh
set -euo pipefail
here=$(dirname "$0")
source "$here/progress.sh"
while [ "$(trained)" -lt "$ITERATIONS" ]; do
    # Exit status 4: shards are missing, and the line says which.
    rlcm train --run "$RUN" || [ $? -eq 4 ]
    sleep "${PAUSE:-20}"
done
