#!/usr/bin/env bash
# Submit ITERATIONS times sampling by an array of jobs and training by one, each after the one before:
#   RUN=/shared/runs/a ITERATIONS=40 ./submit.sh --task compression --set sample.shards=16
set -euo pipefail
here=$(dirname "$0")
export RUN
previous=""
for ((iteration = 0; iteration < ITERATIONS; iteration++)); do
    sampled=$(sbatch --parsable ${previous:+--dependency=afterok:$previous} "$here/sample.sbatch" "$@")
    previous=$(sbatch --parsable --dependency="afterok:$sampled" "$here/train.sbatch")
done
echo "last job: $previous"
