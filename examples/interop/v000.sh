#!/bin/sh
# Compiles v000.c with the C library's external protocol, into the folder of our own programs:
#   sh examples/interop/v000.sh SOURCE
# SOURCE is the library's source with src/tdb_external.c in it, which is the branch userfault of
# github.com/tuulos/traildb, and of no release. Needs libJudy and libarchive.
set -eu
cd "$(dirname "$0")/../.."
source=${1:-}
if [ ! -f "$source/src/tdb_external.c" ]; then
    echo "make interop-v000: say V000_SRC=/path to the branch userfault of github.com/tuulos/traildb" >&2
    exit 1
fi
target=${CARGO_TARGET_DIR:-target}/release
mkdir -p "$target"
# Its files have no blanks in their names; neither may the folder that they are in.
# shellcheck disable=SC2046
${CC:-cc} -std=gnu99 -O2 -w -fno-strict-aliasing -DTDB_EXTERNAL=1 -DHAVE_ARCHIVE_H=1 \
    -DDSFMT_MEXP=521 -include examples/interop/v000.h -I"$source/src" -o "$target/v000-c" \
    examples/interop/v000.c $(find "$source/src" -name '*.c') -lJudy -larchive -lpthread -lm
echo "$target/v000-c"
