#!/bin/sh
# Runs the tests under a sanitizer: sh examples/deep/sanitize.sh address|thread [FILTER...]
#
# The runtimes of both come with the stable toolchain; RUSTC_BOOTSTRAP has it take the flag. First the sanitizer
# must find an error that is planted, and nothing where there is none: planted.rs. CARGO can be set, and
# DEEP_TARGET, a folder, and DEEP_PACKAGES, whose tests run.
set -eu
cd "$(dirname "$0")/../.."
kind=${1:?address or thread}
shift
cargo=${CARGO:-cargo}
export RUSTC_BOOTSTRAP=1
host=$(rustc -vV | sed -n 's/^host: //p')
dir=$(mkdir -p "${DEEP_TARGET:-target/deep-$kind}" && cd "${DEEP_TARGET:-target/deep-$kind}" && pwd)
flags="-Zsanitizer=$kind -Cunsafe-allow-abi-mismatch=sanitizer"

case $kind in
    address) runtime=asan ;;
    thread) runtime=tsan ;;
    *) echo "make deep: no sanitizer $kind here" >&2; exit 2 ;;
esac
if ! ls "$(rustc --print target-libdir)"/librustc-*rt.$runtime.a >/dev/null 2>&1; then
    echo "left out: $kind sanitizer: this toolchain has no runtime of it for $host"
    exit 0
fi

# The program's own handlers, and what the kernel does, are what the tests are about.
signals=handle_segv=0:handle_sigbus=0:handle_abort=0:allow_user_segv_handler=1
# Options of the runtime make a report an exit status of its own.
export ASAN_OPTIONS="$signals:exitcode=99"
export TSAN_OPTIONS="$signals:exitcode=99:history_size=4:suppressions=$PWD/examples/deep/suppressions.txt"

planted() {
    # The words of $flags are several arguments.
    # shellcheck disable=SC2086
    rustc --edition 2024 -O -g --target "$host" $flags examples/deep/planted.rs -o "$dir/planted"
}
# What it must say of the planted error, and how it ends.
finds() {
    status=0
    "$dir/planted" "$1" >"$dir/planted.txt" 2>&1 || status=$?
    if [ $status -ne 99 ] || ! grep -q "$2" "$dir/planted.txt"; then
        cat "$dir/planted.txt" >&2
        echo "make deep: the $kind sanitizer of this toolchain does not find the planted error" >&2
        exit 1
    fi
}

planted
if [ "$kind" = address ]; then
    finds heap heap-buffer-overflow
else
    # Functions of std that order threads, by what their names end with in the mangled form.
    name() { nm "$dir/planted" | awk -v end="$1" '
        $3 ~ /_3std/ && substr($3, length($3) - length(end) + 1) == end { print $3; exit }'; }
    flags="$flags -Clink-arg=$dir/order.o -Clink-arg=-Wl,--wrap=__tsan_atomic64_fetch_sub"
    names=
    for pair in MUTEX_LOCK:5Mutex14lock_contended RWLOCK_READ:6RwLock14read_contended \
        RWLOCK_WRITE:6RwLock15write_contended CONDVAR_WAIT:7Condvar4wait \
        CONDVAR_WAIT_TIMEOUT:7Condvar12wait_timeout ONCE_CALL:4Once4call \
        SCOPE_END:9ScopeData29decrement_num_running_threads; do
        found=$(name "${pair#*:}")
        if [ -z "$found" ]; then
            echo "make deep: this toolchain's std has no ${pair#*:}: examples/deep/order.c" >&2
            exit 1
        fi
        names="$names -D${pair%%:*}=$found"
        flags="$flags -Clink-arg=-Wl,--wrap=$found"
    done
    # shellcheck disable=SC2086
    ${CC:-cc} -std=gnu11 -O1 -Wall -Wextra -c examples/deep/order.c $names -o "$dir/order.o"
    planted
    finds race "data race"
    for _ in 1 2 3; do
        if ! "$dir/planted" order >"$dir/planted.txt" 2>&1; then
            cat "$dir/planted.txt" >&2
            echo "make deep: the thread sanitizer takes the locks of std for none: examples/deep/order.c" >&2
            exit 1
        fi
    done
fi
echo "the $kind sanitizer finds what is planted"

# Left out, by name:
# - what measures the memory of the process: that of the sanitizer is a part of it;
skip="--skip memory_stays_within_the_budget --skip a_tebibyte_opens_at_once_and_costs_little
    --skip touches_all_over_a_tebibyte_stay_within_the_budget
    --skip page_tables_go_with_units_that_are_moved_away"
# - what locks memory: under a sanitizer mlock(2) does nothing, and these would test nothing.
skip="$skip --skip what_takes_a_longer_copy_is_left_alone --skip locked_memory_is_evicted
    --skip a_program_that_locks_its_memory_reads_no_zeros
    --skip all_memory_can_be_locked_while_regions_are_open"

packages=${DEEP_PACKAGES:-extmem-pager}
export CARGO_PROFILE_RELEASE_OPT_LEVEL=1
for package in $packages; do
    echo "== $package"
    # shellcheck disable=SC2086
    RUSTFLAGS="$flags" "$cargo" test -q --release --target "$host" --target-dir "$dir" --no-fail-fast \
        -p "$package" --lib --tests -- $skip "$@"
done
