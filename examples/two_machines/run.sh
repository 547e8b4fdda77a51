#!/usr/bin/env bash
# Two folders stand for two machines that share no disk: A has the model, B the reward.
#   ITERATIONS=2 ./run.sh --task compression
# The arguments are those of `rlcm sample`. WORK: where both folders go.
set -euo pipefail
work=${WORK:-runs/two_machines}
a=$work/a/run b=$work/b/run
mkdir -p "$a" "$b"

send() { # what B needs to score, and what A needs back: neither model nor checkpoints travel
    if command -v rsync >/dev/null; then
        rsync -a "$1/config.json" "$1/rollouts" "$2/"
    else
        cp -a "$1/config.json" "$1/rollouts" "$2/"
    fi
}

for ((iteration = 0; iteration < ${ITERATIONS:-2}; iteration++)); do
    rlcm sample --run "$a" "$@"
    send "$a" "$b"
    rlcm score --run "$b"
    send "$b" "$a"
    rlcm train --run "$a"
done
rlcm generate --lora "$a" --prompt "a cat" --count 8 --out "$work/drawn" --overwrite
