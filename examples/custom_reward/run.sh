#!/usr/bin/env bash
# Train for two rewards of ours, each beside the embedded judge that keeps the animals recognisable:
#   ITERATIONS=20 ./run.sh
# The arguments are more of those of `rlcm loop`. WORK: where the runs go.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=${WORK:-runs/custom_reward}
iterations=${ITERATIONS:-20}

rlcm loop --task compression --run "$work/redness" --iterations "$iterations" \
    --reward "$here/redness.py:redness=1" --reward recognition=1 "$@"

# A set-level reward needs images of a prompt that are drawn together: four here.
rlcm loop --task compression --run "$work/variety" --iterations "$iterations" \
    --reward "$here/variety.py:variety=1" --reward recognition=1 --set sample.group_size=4 "$@"
