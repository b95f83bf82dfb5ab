#!/bin/sh
# Runs under Miri what makes no system call: sh examples/deep/miri.sh [FILTER...]
#
# Miri is a component of nightly toolchains only. Policies, arithmetic, words of states, queues and the format of
# traces; what maps memory or has threads wait for faults is the sanitizers'.
set -eu
cd "$(dirname "$0")/../.."
cargo=${CARGO:-cargo}
if "$cargo" miri --version >/dev/null 2>&1; then
    miri="$cargo miri"
elif "$cargo" +nightly miri --version >/dev/null 2>&1; then
    miri="$cargo +nightly miri"
else
    echo "left out: Miri: no toolchain here has it (rustup +nightly component add miri)"
    exit 0
fi
# Property tests look for a folder to remember failures in, and some hundred cases would take hours.
export MIRIFLAGS="${MIRIFLAGS:--Zmiri-disable-isolation}" PROPTEST_CASES="${PROPTEST_CASES:-4}"
if [ $# -eq 0 ]; then
    set -- policy:: units:: preset:: cache::state:: fetch::hints:: fetch::queue:: trace::format::
fi
# Each runs through some hundred thousand steps, of which Miri does some ten thousand in a second.
$miri test -q --target-dir "${DEEP_TARGET:-target/deep-miri}" -p extmem-pager --lib -- "$@" \
    --skip a_million_entries --skip s3fifo_hits_more_often --skip conform --skip simulation
