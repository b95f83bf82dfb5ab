#!/bin/sh
# Packs `pager` and `sources` as for a registry, unpacks them elsewhere, and builds and runs a crate
# outside the workspace on them: proof that the packages are whole.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cargo=${CARGO:-cargo}
target=${CARGO_TARGET_DIR:-$root/target}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cd "$root"
# The build of each package alone is this test's own, below.
$cargo package -q --no-verify --allow-dirty -p extmem-pager -p extmem-sources
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
for name in extmem-pager extmem-sources; do
    tar -xzf "$target/package/$name-$version.crate" -C "$work"
done

mkdir -p "$work/packaged/src"
cp "$here/src/main.rs" "$work/packaged/src/"
sed -e "s,@PAGER@,$work/extmem-pager-$version," -e "s,@SOURCES@,$work/extmem-sources-$version," \
    "$here/Cargo.toml.in" >"$work/packaged/Cargo.toml"
# The workspace's versions and profiles: what they made is used again, where features agree.
sed -n '/^\[profile/,$p' Cargo.toml >>"$work/packaged/Cargo.toml"
cp Cargo.lock "$work/packaged/Cargo.lock"
cd "$work/packaged"
CARGO_TARGET_DIR=$target $cargo run -q --release
