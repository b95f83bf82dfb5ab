#!/bin/sh
# The frames of block servers and their clients: sh sources/fuzz/run.sh [SECONDS [TARGETS]], as
# traildb/fuzz/run.sh has it.
here=$(cd "$(dirname "$0")" && pwd) || exit 1
FUZZ_FOLDER=$here exec sh "$here/../../traildb/fuzz/run.sh" "${1:-60}" "${2:-v000 blocks client}"
