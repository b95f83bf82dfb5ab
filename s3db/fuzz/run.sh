#!/bin/sh
# Pages, the log, the catalogue, proposals, addresses and search keys: sh s3db/fuzz/run.sh [SECONDS [TARGETS]], as
# traildb/fuzz/run.sh has it.
here=$(cd "$(dirname "$0")" && pwd) || exit 1
FUZZ_FOLDER=$here exec sh "$here/../../traildb/fuzz/run.sh" "${1:-60}" "${2:-page log catalogue proposal address search}"
