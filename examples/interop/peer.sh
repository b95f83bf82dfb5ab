#!/bin/sh
# Compiles peer.c against an installed C library, into the folder of our own programs:
#   sh examples/interop/peer.sh [PREFIX]
# PREFIX has include/ and lib/ in it; without one pkg-config is asked.
set -eu
cd "$(dirname "$0")/../.."
prefix=${1:-}
target=${CARGO_TARGET_DIR:-target}/release
mkdir -p "$target"
if [ -n "$prefix" ]; then
    flags="-I$prefix/include -I$prefix/include/traildb -L$prefix/lib -Wl,-rpath,$prefix/lib -ltraildb"
elif pkg-config --exists traildb 2>/dev/null; then
    flags=$(pkg-config --cflags --libs traildb)
else
    echo "make interop-peer: pkg-config knows no traildb; say TDB_LIB=/prefix of an installed one" >&2
    exit 1
fi
# The words of $flags are several arguments.
# shellcheck disable=SC2086
${CC:-cc} -std=gnu99 -O3 -Wall -Wextra -o "$target/peer-c" examples/interop/peer.c $flags
echo "$target/peer-c"
