# To be sourced: `trained` prints how many iterations the run at $RUN has trained, 0 where there is no run yet.
trained() {
    { rlcm inspect "$RUN" --json 2>/dev/null || echo '{"iterations trained": 0}'; } |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["iterations trained"])'
}
