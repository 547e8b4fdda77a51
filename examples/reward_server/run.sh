#!/usr/bin/env bash
# Train for a reward that another process serves, which is killed and started again on the way:
#   SERVER=heavy/bin/rlcm ./run.sh
# SERVER: the `rlcm` of the environment that serves. PORT, WORK, ITERATIONS: as they say.
# The arguments are more of those of `rlcm loop`.
set -euo pipefail
port=${PORT:-8765}
run=${WORK:-runs/reward_server}/run
mkdir -p "$(dirname "$run")"

serve() {
    "${SERVER:-rlcm}" serve-reward colourfulness --port "$port" --device cpu &
    server=$!
}
trap 'kill "$server" 2>/dev/null || true' EXIT

serve
rlcm loop --task compression --run "$run" --iterations "${ITERATIONS:-6}" \
    --reward "http://127.0.0.1:$port/colourfulness=1" --reward recognition=1 "$@" &
loop=$!

until [ -e "$run/checkpoints/000001/complete.json" ]; do
    kill -0 "$loop" || wait "$loop" # a loop that failed ends this, too
    sleep 0.5
done
kill -9 "$server"
echo "the server is killed"
sleep "${AWAY:-10}"
serve
echo "the server is back"
wait "$loop"
