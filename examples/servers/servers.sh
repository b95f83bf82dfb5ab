#!/bin/sh
# Servers for the tests, on this machine: S3 near and far away, S3 whose answers can be made to go
# wrong, files over HTTP, and both over TLS. One process, `s3-endpoint --tests`; see examples/endpoint/src.
#
#   servers.sh start     starts it unless it runs, prints the environment that the tests read
#   servers.sh stop      stops it and removes its files
#   servers.sh status    says which
#
# SERVERS_RUN is its folder, SERVERS_PORT the first of seven ports (0: free ones). There is no SQS
# among them: tests that want it are left out, and the queues of s3db run in its embedded store.
set -eu

run=${SERVERS_RUN:-${TMPDIR:-/tmp}/extmem-servers-$(id -u)}
port=${SERVERS_PORT:-0}
target=${CARGO_TARGET_DIR:-$(cd "$(dirname "$0")/../.." && pwd)/target}
program=$target/release/s3-endpoint

alive() {
    [ -s "$run/pid" ] && kill -0 "$(cat "$run/pid")" 2>/dev/null
}

start() {
    alive && return
    [ -x "$program" ] || { echo "servers: build it first: make servers" >&2; exit 1; }
    mkdir -p "$run/files"
    AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=testtest "$program" --port "$port" \
        --anonymous-reads --tests "$run/files" >"$run/env" 2>"$run/log" </dev/null &
    echo $! >"$run/pid"
    # The last line of the environment comes when every port is open.
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        grep -q TEST_HTTP_SLOW_BASE "$run/env" && return
        alive || break
        sleep 0.3
    done
    echo "servers: it did not start:" >&2
    cat "$run/log" >&2
    exit 1
}

case ${1:-} in
    start) start; cat "$run/env" ;;
    stop)
        if alive; then kill "$(cat "$run/pid")"; fi
        rm -rf "$run"
        ;;
    status) if alive; then echo up; else echo down; fi ;;
    *) echo "usage: $0 start|stop|status" >&2; exit 2 ;;
esac
