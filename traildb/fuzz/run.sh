#!/bin/sh
# Searches for SECONDS (60) in all, with coverage as its guide: sh traildb/fuzz/run.sh [SECONDS [TARGETS]].
# The time is shared out among the targets. Any toolchain will do: the flags below are what turns
# coverage on for libFuzzer, and the code searched through has no unsafe lines, so no sanitizer is
# asked for. What was found stays in $FUZZ_CORPUS/TARGET; an input that fails is written beside it,
# its name is printed, and the other targets have their turn all the same. $FUZZ_FOLDER is a package
# like this one, with targets of its own.
set -eu
cd "${FUZZ_FOLDER:-$(dirname "$0")}"
seconds=${1:-60}
targets=${2:-"reader make filter index"}
target=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
corpus=${FUZZ_CORPUS:-$target/corpus}
host=$(rustc -vV | sed -n 's/^host: //p')

command -v c++ >/dev/null 2>&1 || {
    echo "make fuzz needs a C++ compiler for libFuzzer: apt-get install g++" >&2
    exit 1
}
# With --target the flags reach no build script.
bins=$(for name in $targets; do printf -- '--bin %s ' "$name"; done)
# The words of $bins are several arguments.
# shellcheck disable=SC2086
RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Ccodegen-units=1 --cfg fuzzing" \
    cargo build -q --release $bins --target "$host" --target-dir "$target"
cargo run -q --release --bin seeds --target-dir "$target" -- "$corpus"

each=$((seconds / $(echo "$targets" | wc -w)))
[ "$each" -gt 0 ] || each=1
failed=
for name in $targets; do
    mkdir -p "$corpus/$name"
    echo "== $name, $each s"
    "$target/$host/release/$name" -max_total_time="$each" -max_len=65536 -timeout=20 \
        -rss_limit_mb=1024 -len_control=0 -print_final_stats=1 \
        -verbosity=0 -print_funcs=0 -artifact_prefix="$corpus/$name-failed-" "$corpus/$name" ||
        failed="$failed $name"
done
[ -z "$failed" ] || {
    echo "failed:$failed; the inputs are in $corpus" >&2
    exit 1
}
