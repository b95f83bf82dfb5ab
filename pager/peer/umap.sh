#!/bin/sh
# Compiles umap.cpp with LLNL UMap, into the folder of our own programs:
#   sh pager/peer/umap.sh SOURCE
# SOURCE is an unpacked release of it, or a clone: https://github.com/LLNL/umap. Its library is compiled here
# with the flags of its release build, and without its logging, which is on in it by default.
set -eu
cd "$(dirname "$0")/../.."
source=${1:-}
if [ ! -f "$source/src/umap/umap.h" ]; then
    echo "make peer-umap: say UMAP=/path to the source of LLNL UMap: there is no ${source:-.}/src/umap/umap.h" >&2
    exit 1
fi
target=${CARGO_TARGET_DIR:-target}/release
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
mkdir -p "$target" "$build/umap"
# What its cmake would configure: the version, and nothing switched on.
version=$(sed -n 's/^ *VERSION  *\([0-9.]*\).*/\1/p' "$source/CMakeLists.txt" | head -1)
set -- $(echo "${version:-0.0.0}" | tr . ' ')
cat >"$build/umap/config.h" <<END
#pragma once
#define UMAP_VERSION_MAJOR $1
#define UMAP_VERSION_MINOR ${2:-0}
#define UMAP_VERSION_PATCH ${3:-0}
END
${CXX:-c++} -std=c++11 -O3 -DNDEBUG -w -pthread -I"$build" -I"$source/src" -o "$target/peer-umap" \
    pager/peer/umap.cpp "$source"/src/umap/*.cpp "$source"/src/umap/store/*.cpp "$source"/src/umap/util/*.cpp
echo "$target/peer-umap"
