#!/usr/bin/env bash
# Train for the same two rewards twice, each normalised by itself and summed as they are, and compare:
#   ITERATIONS=30 ./run.sh
# The arguments are more of those of `rlcm loop`. WORK: where the runs go.
set -euo pipefail
work=${WORK:-runs/two_rewards}

for combine in normalised sum; do
    rlcm loop --task compression --run "$work/$combine" --iterations "${ITERATIONS:-30}" \
        --reward colourfulness=1 --reward recognition=1 --set "combine=$combine" "$@"
done
rlcm compare "$work/normalised" "$work/sum" --out "$work/compared"
