#!/bin/sh
# Searches for SECONDS (60) with coverage as its guide: sh traildb/fuzz/run.sh [SECONDS].
# Any toolchain will do: the flags below are what turns coverage on for libFuzzer, and the code
# searched through has no unsafe lines, so no sanitizer is asked for. What was found stays in
# $FUZZ_CORPUS; an input that fails is written beside it, and its name is printed.
set -eu
cd "$(dirname "$0")"
seconds=${1:-60}
target=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
corpus=${FUZZ_CORPUS:-$target/corpus}
host=$(rustc -vV | sed -n 's/^host: //p')

command -v c++ >/dev/null 2>&1 || {
    echo "make fuzz needs a C++ compiler for libFuzzer: apt-get install g++" >&2
    exit 1
}
mkdir -p "$corpus"
# With --target the flags reach no build script.
RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Ccodegen-units=1 --cfg fuzzing" \
    cargo build -q --release --bin reader --target "$host" --target-dir "$target"
cargo run -q --release --bin seeds --target-dir "$target" -- "$corpus"
exec "$target/$host/release/reader" -max_total_time="$seconds" -max_len=65536 -timeout=20 \
    -rss_limit_mb=1024 -len_control=0 -print_final_stats=1 -artifact_prefix="$corpus-failed-" "$corpus"
